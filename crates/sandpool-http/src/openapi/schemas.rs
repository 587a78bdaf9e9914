//! The schemas of bodies, and examples of them.

#![expect(clippy::needless_pass_by_value, reason = "schemas are made where they are given")]

use serde_json::{Map, Value, json};

/// An object whose keys are all there, but for those whose name ends in `?`.
fn object(description: &str, properties: Value) -> Value {
    let Value::Object(given) = properties else { panic!("not properties") };
    let required: Vec<_> = given.keys().filter(|name| !name.ends_with('?')).cloned().collect();
    let named: Map<_, _> =
        given.into_iter().map(|(name, schema)| (name.trim_end_matches('?').to_owned(), schema)).collect();
    let mut schema = json!({ "type": "object", "description": description, "properties": named });
    if !required.is_empty() {
        schema["required"] = json!(required);
    }
    schema
}

fn with_example(mut schema: Value, example: Value) -> Value {
    schema["examples"] = json!([example]);
    schema
}

/// A request: unknown keys are refused.
fn closed(mut schema: Value) -> Value {
    schema["additionalProperties"] = json!(false);
    schema
}

pub(super) fn to(name: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{name}") })
}

fn kind(kind: &str, description: &str) -> Value {
    json!({ "type": kind, "description": description })
}

fn or_null(kind: &str, description: &str) -> Value {
    json!({ "type": [kind, "null"], "description": description })
}

fn instant(description: &str) -> Value {
    json!({ "type": "string", "format": "date-time", "description": description })
}

fn list(of: &str) -> Value {
    json!({ "type": "array", "items": to(of) })
}

fn lines(description: &str) -> Value {
    json!({ "type": "array", "items": { "type": "string" }, "description": description })
}

fn hosts(description: &str) -> Value {
    json!({ "type": "array", "items": { "type": "string" }, "description": description })
}

fn page(of: &str) -> Value {
    let next = or_null("string", "If there is more: ask again with `after` set to this.");
    object("A page of a list.", json!({ "value": list(of), "next": next }))
}

fn hosted() -> Value {
    let any = |description: &str| json!({ "description": description });
    json!({
        "JsonRpc": with_example(
            object("A message of JSON-RPC 2.0: a request, a notification or a response.", json!({
                "jsonrpc": kind("string", "`2.0`."), "id?": any("Of a request and its response: a text or a number."),
                "method?": kind("string", "Of a request or a notification."), "params?": any("What it takes."),
                "result?": any("Of a response."), "error?": any("Of a response: `code` and `message`."),
            })),
            json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": { "name": "echo", "arguments": { "message": "hi" } } }),
        ),
    })
}

pub(super) fn all() -> Value {
    let mut all = native();
    for more in [looks(), azure(), identity(), hosted(), objects(), sessions(), terminals()] {
        let (Value::Object(all), Value::Object(more)) = (&mut all, more) else { panic!("not schemas") };
        all.extend(more);
    }
    all
}

/// Sessions, as lists and answers have them.
fn sessions() -> Value {
    let session = json!({
        "pool": kind("string", "Its pool."),
        "identifier": kind("string", "Its name."),
        "sandbox": json!({ "type": "string", "format": "uuid", "description": "The sandbox bound to it." }),
        "tenant": kind("string", "Against whose quota it counts."),
        "owner": kind("string", "The subject of the token that made it."),
        "level": kind("string", "The isolation level it really has."),
        "createdAt": instant("When it was made."),
        "lastUsedAt": instant("When it was last used."),
        "expiresAt": instant("When it ends, if it is not used again."),
        "busy": kind("integer", "Executions that run or wait, and files that are being moved."),
        "state": json!({ "type": "string", "enum": ["live", "suspended"], "description": "Whether it has a sandbox. The next use of one that is suspended brings it back." }),
        "suspended?": to("Suspended"),
    });
    let mut listed = session.clone();
    listed["usage?"] = json!({
        "oneOf": [to("Usage"), { "type": "null" }],
        "description": "With `usage=true`: what its sandbox uses, or used two seconds ago at most. Null when it is not known.",
    });
    let mut detail = session.clone();
    detail["usage"] = json!({
        "oneOf": [to("Usage"), { "type": "null" }],
        "description": "What its sandbox uses. Null while it is suspended.",
    });
    let bytes = |of: &str| kind("integer", &format!("Bytes {of}."));
    let usage = object(
        "What a session's sandbox uses.",
        json!({
            "memoryBytes": bytes("of memory"), "memoryPeakBytes": bytes("of memory at most so far"),
            "pids": kind("integer", "Processes and threads."), "cpuSeconds": kind("number", "Processor time."),
            "oomKills": kind("integer", "Processes that were killed for want of memory."),
            "storedBytes": bytes("of its files"), "sentBytes": bytes("that went out of it"),
            "receivedBytes": bytes("that came into it"),
        }),
    );
    detail["wall"] = lines("What its wall is made of.");
    detail["weaker"] = lines("What is weaker on this host than the level promises elsewhere.");
    let mut opened = session.clone();
    opened["isNew"] = kind("boolean", "This call made it.");
    opened["openMilliseconds"] = kind("number", "How long it took to get it.");
    opened["resumed"] = json!({
        "oneOf": [to("Resumed"), { "type": "null" }],
        "description": "This call brought it back from being suspended. Null where it did not.",
    });
    let keeps = || {
        json!({
            "type": "string", "enum": ["files", "machine"],
            "description": "What is kept: the files of `/mnt/data` and of the home directory, or all of its machine.",
        })
    };
    let suspended = object(
        "How a session is suspended.",
        json!({ "since": instant("Since when."), "bytes": bytes("of it on the host's disk"), "keeps": keeps() }),
    );
    let resumed = object(
        "What a session that was brought back has of what had been there.",
        json!({ "keeps": keeps(), "lost": lines("What it has not: none for a machine.") }),
    );
    let snapshot = object(
        "A copy of a session on the host's disk.",
        json!({
            "id": json!({ "type": "string", "format": "uuid", "description": "Its id." }),
            "name": json!({ "type": ["string", "null"], "description": "What its maker calls it." }),
            "pool": kind("string", "The session's pool."), "session": kind("string", "The session."),
            "takenAt": instant("When it was taken."), "bytes": bytes("of it on the host's disk"), "keeps": keeps(),
            "parent": json!({ "type": ["string", "null"], "description": "The snapshot that its session had come from." }),
        }),
    );
    json!({
        "Suspended": suspended,
        "Resumed": resumed,
        "Snapshot": snapshot,
        "Snapshots": object("Snapshots of a session, the oldest first.", json!({ "value": json!({ "type": "array", "items": to("Snapshot"), "description": "All of them." }) })),
        "Suspending": with_example(closed(object("How a session is suspended.", json!({ "force?": kind("boolean", "End what runs in it. Else it is refused with `SessionBusy`.") }))), json!({ "force": true })),
        "Copying": with_example(closed(object("What a snapshot is called.", json!({ "name?": { "type": ["string", "null"], "description": "1 to 64 characters of those of an identifier; no other snapshot of the session has it." } }))), json!({ "name": "before-the-upgrade" })),
        "Forking": with_example(closed(object("What a session is made of.", json!({
            "identifier": kind("string", "The new session's name."),
            "snapshot?": { "type": ["string", "null"], "description": "A snapshot of the session, by its id or its name; the session as it is now, if not given." },
        }))), json!({ "identifier": "chat-18", "snapshot": "before-the-upgrade" })),
        "SessionDetail": object("A session, and what it uses.", detail),
        "OpenedSession": object("A session that was found or made.", opened),
        "Session": object("A session.", session),
        "ListedSession": object("A session in a list.", listed),
        "Sessions": page("ListedSession"),
        "Usage": usage,
    })
}

fn objects() -> Value {
    json!({
        "PoolObject": with_example(
            closed(object("A pool as an object: what it shall be, and in answers how it is.", json!({
                "apiVersion?": kind("string", "`sandpool.dev/v1alpha1`."),
                "kind?": kind("string", "`SessionPool`."),
                "metadata": object("Its name, and what people say about it.", json!({
                    "name": kind("string", "As in the path."),
                    "labels?": json!({ "type": "object", "additionalProperties": true, "description": "Texts by their names; ARM's tags." }),
                    "annotations?": json!({ "type": "object", "additionalProperties": true, "description": "What other programs keep with it." }),
                    "generation?": kind("integer", "In answers: counts its changes."),
                    "creationTimestamp?": instant("In answers: when it was first applied."),
                    "origin?": json!({ "type": "string", "enum": ["file", "default", "applied"], "description": "In answers: where it comes from." }),
                })),
                "spec": json!({
                    "type": "object", "additionalProperties": true,
                    "description": "As in a configuration file: `docs/pools.md` tells every field. `containerType` must be there.",
                }),
                "status?": json!({ "type": "object", "additionalProperties": true, "description": "In answers: how it is." }),
            }))),
            json!({
                "apiVersion": "sandpool.dev/v1alpha1", "kind": "SessionPool", "metadata": { "name": "calc" },
                "spec": { "containerType": "PythonLTS", "scaleConfiguration": { "maxConcurrentSessions": 20, "readySessionInstances": 2 } },
            }),
        ),
        "PreviewRequest": with_example(
            closed(object("Which port, and for how long.", json!({
                "port": kind("integer", "The port, on the session's loopback."),
                "ttlSeconds?": or_null("integer", "How long the address is good; by default 3600, at most a week."),
            }))),
            json!({ "port": 8000, "ttlSeconds": 600 }),
        ),
        "Logs": object("What a program has written, standard output and standard error as they came.", json!({
            "text": kind("string", "At most a mebibyte of it."),
            "dropped": kind("integer", "Bytes after `after` that are not kept any more: the last mebibyte is."),
            "next": kind("integer", "Ask again with `after` set to this."),
            "isAll": kind("boolean", "There is no more for now."),
        })),
        "Preview": object("An address of a port of a session.", json!({
            "url": kind("string", "Below this server: in a browser a document alone, without cookies."),
            "hostUrl": kind("string", "As a host of its own: an ordinary site. Its name must lead here."),
            "port": kind("integer", "The port."),
            "expiresAt": instant("When it ends, at the latest: it ends with the session."),
        })),
        "AppliedPool": object("What came of applying a pool.", json!({
            "result": json!({ "type": "string", "enum": ["created", "changed", "unchanged"] }),
            "isDryRun": kind("boolean", "Nothing was done."),
            "object": to("PoolObject"),
        })),
    })
}

/// What is looked at while a session lives.
fn looks() -> Value {
    let bytes = |of: &str| kind("integer", &format!("Bytes {of}."));
    json!({
        "EgressDecisions": object("A page of decisions.", json!({
            "decisions": list("EgressDecision"),
            "next": or_null("integer", "If there is more: ask again with `after` set to this."),
        })),
        "EgressDecision": object("What was decided about a connection, which has ended, or about a question for a name.", json!({
            "sequence": kind("integer", "Counts up; the id of the event."),
            "time": instant("When."),
            "host": or_null("string", "Where to: a name or an address; null when that could not be understood."),
            "port": or_null("integer", "At which port."),
            "via": json!({ "type": "string", "enum": ["dns", "http", "tls", "proxy", "connect", "socks"], "description": "How it came." }),
            "decision": json!({ "type": "string", "enum": ["allowed", "refused", "failed"], "description": "`failed`: it was allowed, and did not work." }),
            "reason": or_null("string", "Why it was not allowed, or how it ended."),
            "sentBytes": bytes("from the session"),
            "receivedBytes": bytes("to it"),
        })),
        "Samples": object("What a session used. Null is what its host does not tell.", json!({
            "interval": kind("number", "Seconds from one sample to the next."),
            "samples": list("Sample"),
        })),
        "Sample": object("What a session used at one moment. Null is what its host does not tell.", json!({
            "sequence": kind("integer", "Counts up; the id of the event."),
            "time": instant("When."),
            "cpuSeconds": or_null("number", "Processor time so far."),
            "throttledSeconds": or_null("number", "How long it was kept from the processor so far, because it had used its share."),
            "memoryBytes": bytes("of memory"),
            "memoryPeakBytes": or_null("integer", "Bytes of memory at most so far."),
            "memoryPressure": or_null("number", "Of the last ten seconds, the share in which something in it waited for memory: 0 to 1."),
            "oomKills": or_null("integer", "Processes that were killed for want of memory so far."),
            "readBytes": or_null("integer", "Bytes read from disks so far."),
            "writtenBytes": or_null("integer", "Bytes written to disks so far."),
            "processes": kind("integer", "Processes and threads."),
            "egressSentBytes": or_null("integer", "Bytes that went out of it so far; null where its pool reaches nothing."),
            "egressReceivedBytes": or_null("integer", "Bytes that came into it so far."),
        })),
    })
}

fn native() -> Value {
    let bytes = |of: &str| kind("integer", &format!("Bytes {of}."));
    let truncated = object(
        "Bytes that were dropped over the limit.",
        json!({
            "stdout": kind("integer", "Of standard output."), "stderr": kind("integer", "Of standard error."),
        }),
    );
    let outcome = json!({
        "type": ["string", "null"], "description": "How it ended; null until it has.",
        "enum": ["succeeded", "raised", "exited", "notStarted", "timedOut", "cancelled", "died", null],
    });
    let outline = json!({
        "id": json!({ "type": "string", "format": "uuid" }),
        "pool": kind("string", "Its pool."),
        "session": kind("string", "Its session."),
        "state": json!({ "type": "string", "enum": ["queued", "running", "ended"] }),
        "outcome": outcome,
        "exitCode": or_null("integer", "Of a command: its exit code, or 128 + the signal that ended it."),
        "detail": or_null("string", "Why it was not started, or how it died."),
        "createdAt": instant("When it was asked for."),
        "queuedMilliseconds": or_null("number", "How long it waited for its turn."),
        "durationMilliseconds": or_null("number", "Wall-clock time inside the sandbox."),
        "stateLost": kind("boolean", "The interpreter was replaced: the session's variables are gone."),
        "truncated": truncated,
    });
    let mut full = outline.clone();
    full["resumed?"] = to("Resumed");
    full["stdout?"] = kind("string", "Standard output so far; not with `bytes=base64`.");
    full["stderr?"] = kind("string", "Standard error so far; not with `bytes=base64`.");
    full["stdoutBase64?"] = kind("string", "With `bytes=base64`.");
    full["stderrBase64?"] = kind("string", "With `bytes=base64`.");
    full["result"] =
        json!({ "oneOf": [to("Shown"), { "type": "null" }], "description": "The value of the last expression." });
    full["displays"] = list("Shown");
    full["error"] =
        json!({ "oneOf": [to("Raised"), { "type": "null" }], "description": "The exception that ended it." });
    let error = object(
        "The refusal.",
        json!({
            "code": kind("string", "Stable."), "message": kind("string", "For people."),
            "target": or_null("string", "The field, parameter or header that is wrong."),
            "traceId": kind("string", "W3C trace context, for the operator's log."),
        }),
    );
    let (rows, columns) = (
        json!({ "type": "integer", "minimum": 1, "maximum": 65535 }),
        json!({ "type": "integer", "minimum": 1, "maximum": 65535 }),
    );
    let stdin = json!({
        "description": "For `command` and `argv`: true for what `POST .../input` brings, a text, or bytes in base64.",
        "oneOf": [{ "type": ["boolean", "string", "null"] }, closed(object("Bytes.", json!({ "base64": kind("string", "The bytes.") })))],
    });
    json!({
        "Problem": with_example(
            object("Why something was not done. The code is also in the header `x-ms-error-code`.", json!({
                "error": error, "code": kind("string", "The code again."), "message": kind("string", "The message again."),
            })),
            json!({
                "error": {
                    "code": "SessionRequestValidationFailed", "message": "waitSeconds is a number from 0 to 600, not 601.",
                    "target": "waitSeconds", "traceId": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
                },
                "code": "SessionRequestValidationFailed", "message": "waitSeconds is a number from 0 to 600, not 601.",
            }),
        ),
        "Status": object("One word.", json!({ "status": kind("string", "`alive` or `ready`.") })),
        "McpCredentials": object("The key of a pool's MCP server.", json!({
            "apiKey": kind("string", "The key."),
            "path": kind("string", "Where the server is."),
        })),
        "Pool": object("A pool.", json!({
            "name": kind("string", "Its name."),
            "containerType": json!({ "type": ["string", "null"], "enum": ["PythonLTS", "NodeLTS", "Shell", "CustomContainer", null] }),
            "runtime": json!({
                "type": ["object", "null"], "description": "What answers code.",
                "properties": { "name": { "type": "string" }, "version": { "type": "string" } },
            }),
            "imageCreatedAt": or_null("string", "When its image was built."),
            "isReady": kind("boolean", "It has as many ready sandboxes as it was asked to keep."),
            "ready": kind("integer", "Sandboxes that are ready for a session."),
            "readyWanted": kind("integer", "Sandboxes to keep ready, at least."),
            "readyTarget": kind("integer", "Sandboxes that should be ready now: as many as the rate of new sessions asks for."),
            "maxReady": kind("integer", "Sandboxes to keep ready when new sessions come fast, at most."),
            "booting": kind("integer", "Sandboxes that are being made."),
            "waited": kind("integer", "New sessions that found nothing ready and waited, since the server's start."),
            "sessions": kind("integer", "Sessions there are: one's own, or for an operator all."),
            "maxSessions": kind("integer", "Sessions at the same time, at most."),
            "level": kind("string", "The isolation level in force."),
            "wall": lines("What the wall is made of on this host."),
            "weaker": lines("What is weaker on this host than the level promises elsewhere."),
            "trouble": or_null("string", "Why sandboxes do not start, when they do not."),
            "limits": object("What each sandbox may use.", json!({
                "memoryBytes": bytes("of memory, files included"), "cpuMilli": kind("integer", "Thousandths of a processor."),
                "pids": kind("integer", "Processes and threads."), "dataBytes": bytes("on `/mnt/data`"),
                "tmpBytes": bytes("on `/tmp`"),
            })),
            "cooldownSeconds": kind("number", "Without use, a session ends after this long."),
            "maxAliveSeconds": or_null("number", "A session ends after this long in any case."),
            "maxTimeoutSeconds": kind("number", "The longest time-out of an execution."),
            "outputLimitBytes": kind("integer", "Bytes of output that one execution keeps."),
            "queue": kind("integer", "Executions that may wait in one session."),
            "origin": json!({ "type": ["string", "null"], "enum": ["file", "default", "applied", null], "description": "Where it comes from." }),
            "generation": or_null("integer", "Counts its changes."),
            "interpreterStart": json!({
                "type": "string", "enum": ["zygote", "cold"], "description": "How interpreters start.",
            }),
            "sessionScope": json!({
                "type": "string", "enum": ["tenant", "pool"], "description": "Who shares a session's name: the callers of one tenant, or all.",
            }),
            "waitWhenFullSeconds": kind("number", "How long a caller waits for a place when every one is taken."),
        })),
        "Pools": object("The pools.", json!({ "value": list("Pool") })),
        "Opening": with_example(
            closed(object("How a session begins.", json!({
                "egress?": { "description": "What it may reach, of what its pool may.", "oneOf": [to("Egress"), { "type": "null" }] },
                "env?": { "type": "object", "additionalProperties": { "type": "string" }, "description": "Environment variables of a session that is made; one that is there has its own, and the call is refused." },
                "secrets?": { "type": "array", "items": to("SessionSecret"), "description": "Secrets of a session that is made, where its pool says `sessionSecrets`." },
            }))),
            json!({ "egress": { "mode": "allow-list", "allow": ["pypi.org"] }, "env": { "STAGE": "test" } }),
        ),
        "SessionSecret": closed(object("A secret that the session uses and does not have.", json!({
            "name": kind("string", "The variable that the session has; its value there is a placeholder."),
            "value": kind("string", "What its hosts get: 8 to 8192 printable ASCII characters. No answer, log or record has it."),
            "hosts": hosts("Who gets the value: `example.com`, `*.example.com`, each with `:PORT` if it is not 443."),
        }))),
        "Egress": with_example(
            closed(object("What may be reached.", json!({
                "mode?": { "type": "string", "enum": ["none", "allow-list", "open"], "description": "Nothing (by default), what `allow` names, or all that is public." },
                "allow?": hosts("Hosts that are reached, in the mode `allow-list`."),
                "deny?": hosts("Hosts that are not, whatever else is said."),
                "allowAddresses?": hosts("Ranges of addresses that are not public and are reached all the same."),
                "hosts?": { "type": "object", "additionalProperties": hosts("Addresses."), "description": "Addresses of names that are asked of nobody." },
            }))),
            json!({ "mode": "allow-list", "allow": ["pypi.org", "*.example.com", "git.example.net:9418"] }),
        ),
        "SessionEgress": object("What a session may reach: what both allow.", json!({
            "pool": to("Egress"),
            "session": { "description": "Null when it was not narrowed.", "oneOf": [to("Egress"), { "type": "null" }] },
        })),
        "ExecutionRequest": with_example(
            closed(object("What to run: exactly one of `code`, `command` and `argv`. A key that is null counts as not given.", json!({
                "code?": or_null("string", "Source text for the pool's interpreter, at most 3 MiB."),
                "command?": or_null("string", "A command line for `/bin/bash -lc` in `/mnt/data`, at most 3 MiB."),
                "argv?": { "type": ["array", "null"], "items": { "type": "string" }, "description": "A program and its arguments." },
                "id?": { "type": ["string", "null"], "format": "uuid", "description": "Your own id: the same again finds the execution that has it." },
                "fresh?": or_null("boolean", "For `code`: in an empty namespace that is thrown away afterwards."),
                "stdin?": stdin,
                "terminal?": { "description": "For `command` and `argv`: on a terminal of its own.", "oneOf": [to("Terminal"), { "type": "null" }] },
                "timeoutSeconds?": or_null("number", "Wall-clock limit; by default and at most the pool's."),
                "outputLimitBytes?": or_null("integer", "Bytes of output to keep; by default and at most the pool's."),
                "waitSeconds?": { "type": ["number", "null"], "minimum": 0, "maximum": 600, "description": "How long the answer waits for the end; by default 60." },
            }))),
            json!({ "code": "print('hi'); 6 * 7", "timeoutSeconds": 30 }),
        ),
        "Terminal": closed(object("A terminal.", json!({ "rows": rows, "columns": columns, "term?": kind("string", "The value of TERM.") }))),
        "Size": with_example(
            closed(object("A terminal's size.", json!({ "rows": rows, "columns": columns }))), json!({ "rows": 24, "columns": 80 }),
        ),
        "Stop": with_example(
            closed(object("How hard.", json!({ "how?": { "type": ["string", "null"], "enum": ["interrupt", "kill", null] } }))),
            json!({ "how": "interrupt" }),
        ),
        "ExecutionOutline": object("An execution without its output.", outline),
        "Executions": object("The executions that are still known.", json!({ "value": list("ExecutionOutline") })),
        "Execution": with_example(object("An execution, as it is now.", full), json!({
            "id": "0b6b2f0e-5a55-4a7e-9b8a-0e4f6f1a2c33", "pool": "python", "session": "chat-17", "state": "ended",
            "outcome": "succeeded", "exitCode": null, "detail": null, "createdAt": "2026-11-24T20:17:29.123456789Z",
            "queuedMilliseconds": 0.412, "durationMilliseconds": 11.3, "stateLost": false,
            "truncated": { "stdout": 0, "stderr": 0 }, "stdout": "hi\n", "stderr": "",
            "result": { "text": "42", "json": 42, "forms": [], "dropped": [] }, "displays": [], "error": null,
        })),
        "Shown": object("A value, as the interpreter shows it.", json!({
            "text": kind("string", "Its printed form."),
            "json?": { "type": ["null", "boolean", "number", "string"], "description": "The value, when it is one of these. Integers keep all their digits." },
            "forms": { "type": "array", "items": object("Another form: `text`, or bytes in `base64`.", json!({
                "type": kind("string", "Its media type."), "text?": kind("string", "As text."), "base64?": kind("string", "As bytes."),
            })) },
            "dropped": { "type": "array", "items": object("A form that was too large.", json!({
                "type": kind("string", "Its media type."), "bytes": kind("integer", "Its size."),
            })) },
        })),
        "Raised": object("An exception.", json!({
            "name": kind("string", "Its class."), "message": kind("string", "Its message."), "traceback": kind("string", "As plain text."),
        })),
        "File": with_example(
            object("A file's or directory's record.", json!({
                "name": kind("string", "The last component."),
                "path": kind("string", "Relative to the listed directory; absolute in the answer to an upload."),
                "type": { "type": "string", "enum": ["file", "directory", "other"] },
                "size": kind("integer", "In bytes."),
                "modifiedAt": { "type": ["string", "null"], "format": "date-time" },
            })),
            json!({ "name": "report.csv", "path": "in/report.csv", "type": "file", "size": 183, "modifiedAt": "2026-11-24T20:17:29.5Z" }),
        ),
        "Files": page("File"),
    })
}

/// Terminals of sessions.
fn terminals() -> Value {
    json!({
        "Terminals": object("The terminals that are known.", json!({ "value": list("TerminalInfo") })),
        "TerminalInfo": with_example(
            object("A terminal of a session, as it is now.", json!({
                "name": kind("string", "Its name."),
                "execution": { "type": "string", "format": "uuid", "description": "What runs on it: a later terminal of that name has another." },
                "command": { "type": "array", "items": { "type": "string" }, "description": "Its program." },
                "rows": kind("integer", "Its size."), "columns": kind("integer", "Its size."),
                "startedAt": instant("When it was made."),
                "state": { "type": "string", "enum": ["running", "ended"] },
                "outcome": or_null("string", "How it ended."),
                "exitCode": or_null("integer", "The program's exit code, where it has one."),
                "attached": kind("integer", "Connections to it."),
            })),
            json!({
                "name": "main", "execution": "0b6b2f0e-5a55-4a7e-9b8a-0e4f6f1a2c33", "command": ["/bin/bash", "-l"], "rows": 24, "columns": 80,
                "startedAt": "2026-11-24T20:17:29.123Z", "state": "running", "outcome": null, "exitCode": null, "attached": 1,
            }),
        ),
    })
}

fn azure() -> Value {
    let any = json!({ "description": "The value of the last expression, of any JSON type; images are `{type, format, base64_data}`." });
    let text = |description: &str| kind("string", description);
    let fields = json!({
        "codeInputType?": text("`Inline`, `InlineText` or `InlineBase64`; compared without case."),
        "executionType?": text("`Synchronous` or `Asynchronous`; compared without case."),
        "code?": text("Source text."),
        "pythonCode?": text("Another name of `code`."),
        "timeoutInSeconds?": kind("integer", "Wall-clock limit."),
        "outputStreamsMaxLength?": kind("integer", "Characters of each stream in the answer."),
        "useEmptyKernel?": kind("boolean", "In an empty namespace that is thrown away afterwards."),
        "returnJupyterFormatExecutionResult?": kind("boolean", "The value as Jupyter shows it."),
        "shellCommand?": text("Shell pools: a command line."),
        "execCommandAndArgs?": { "type": "array", "items": { "type": "string" }, "description": "Shell pools: a program and its arguments." },
        "stdin?": text("Shell pools: standard input."),
        "identifier?": text("The session, when the query does not name it."),
    });
    let mut request = fields.clone();
    request["properties?"] = object("The same fields, wrapped.", fields);
    let mut request = object(
        "What to run, flat or wrapped in `properties`. Keys are compared without case; unknown ones are skipped.",
        request,
    );
    request["additionalProperties"] = json!(true);
    let result = object(
        "What came of it.",
        json!({
            "stdout": text("Standard output."), "stderr": text("Standard error."), "executionResult?": any,
            "executionTimeInMilliseconds": kind("integer", "Wall-clock time inside the sandbox."),
            "outputs?": { "type": "array", "items": { "type": "object", "additionalProperties": true }, "description": "All that was shown, as Jupyter has it." },
            "truncated?": object("The streams that are not whole.", json!({
                "streams": { "type": "array", "items": { "type": "string" } }, "fullOutput?": text("Where to read them whole."),
            })),
            "reason?": text("What ended it, if that was not its own end."),
        }),
    );
    let inner = json!({
        "$id": text("A reference of .NET."), "status": text("`Success` or `Failure`."), "stdout": text("Standard output."),
        "stderr": text("Standard error."), "result": any, "executionResult": any,
        "executionTimeInMilliseconds": kind("integer", "Wall-clock time inside the sandbox."),
    });
    let word = "`Succeeded`, `Failed`, `Running`, `NotStarted` or `Canceled`; of a command its exit code, as text.";
    let legacy = object(
        "An execution, as clients of 2023 and 2024 read it: the fields at the top, and again in `properties`.",
        json!({
            "$id": text("A reference of .NET."), "id": text("The execution's id."), "identifier": text("Its session."),
            "status": text("`Success`, `Failure`, `Running` or `NotStarted`."), "result": any, "stdout": text("Standard output."),
            "stderr": text("Standard error."), "properties": object("The same again.", inner),
        }),
    );
    let properties = object(
        "The record of 2024.",
        json!({
            "$id": text("A reference of .NET."), "filename": text("Its name."), "size": kind("integer", "In bytes."),
            "lastModifiedTime": instant("When it was written."),
        }),
    );
    let record = object(
        "A file's record. Versions before 2024-10 have `properties` only, later ones all but that, and a request without a version gets both.",
        json!({
            "$id?": text("A reference of .NET."), "name?": text("Its name."), "type?": text("`file` or `directory`."),
            "contentType?": text("Its media type."), "sizeInBytes?": kind("integer", "Its size."),
            "lastModifiedAt?": instant("When it was written."), "directory?": text("Where it is, below the listed directory."),
            "filename?": text("Its name again."), "bytes?": kind("integer", "Its size again."), "size?": kind("integer", "Its size again."),
            "properties?": properties, "value?": list("AzureFile"), "$values?": list("AzureFile"),
        }),
    );
    let session = object(
        "A session.",
        json!({
            "identifier": text("Its name."), "createdAt": instant("When it was made."), "lastAccessedAt": instant("When it was last used."),
            "expireAt": instant("When it ends, if it is not used again."), "expiresAt": instant("The same."), "etag": text("Names its sandbox."),
            "tenant?": text("For an operator: whose it is."),
        }),
    );
    json!({
        "AzureExecutionRequest": with_example(request, json!({ "codeInputType": "Inline", "executionType": "Synchronous", "code": "6 * 7" })),
        "AzureExecution": with_example(
            object("An execution.", json!({
                "id": text("Its id."), "identifier": text("Its session."), "executionType": text("`Synchronous` or `Asynchronous`."),
                "status": text(word), "result?": result,
            })),
            json!({
                "id": "0b6b2f0e-5a55-4a7e-9b8a-0e4f6f1a2c33", "identifier": "conversation-17", "executionType": "Synchronous",
                "status": "Succeeded",
                "result": { "stdout": "hi\n", "stderr": "", "executionResult": 42, "executionTimeInMilliseconds": 14 },
            }),
        ),
        "AzureLegacyExecution": legacy,
        "AzureFile": record,
        "AzureFiles": object("Files.", json!({
            "$id?": text("A reference of .NET."), "value": list("AzureFile"), "$values?": list("AzureFile"),
            "nextLink?": text("Where the next page is."),
        })),
        "AzureContent": object("A file's bytes.", json!({ "content": text("In base64.") })),
        "AzureSession": session,
        "AzureSessions": object("Sessions.", json!({ "sessions": list("AzureSession"), "nextLink?": text("Where the next page is.") })),
        "AzureManagedSessions": object("Sessions, in both spellings.", json!({
            "value": list("AzureSession"), "sessions": list("AzureSession"), "count": kind("integer", "On this page."),
            "nextLink": or_null("string", "Where the next page is."),
        })),
        "AzureMetadata": object("What is in the pool's image.", json!({
            "runtimes": list("AzurePackage"), "preInstalledPackages": list("AzurePackage"),
            "createdAt": instant("When it was built."), "lastUpdatedAt": instant("The same."),
            "jupyterKernel?": object("The interpreter.", json!({
                "name": text("Its name."), "version": text("Its version."), "projectUrl": text("Its home."), "description": text("In words."),
            })),
        })),
        "AzurePackage": object("A package.", json!({ "name": text("Its name."), "version": text("Its version.") })),
    })
}

fn identity() -> Value {
    let text = |description: &str| kind("string", description);
    let texts = json!({ "type": "array", "items": { "type": "string" } });
    json!({
        "ManagedIdentityToken": object("A token, as managed identity answers.", json!({
            "access_token": text("The token."), "expires_on": text("Seconds since 1970, as text."), "expires_in": text("Seconds, as text."),
            "resource": text("Its audience."), "token_type": text("`Bearer`."), "client_id": text("Who asked."),
        })),
        "ServicePrincipalToken": object("A token, as OAuth 2.0 answers.", json!({
            "token_type": text("`Bearer`."), "expires_in": kind("integer", "Seconds."), "ext_expires_in": kind("integer", "Seconds."),
            "access_token": text("The token."),
        })),
        "IdentityError": object("Why there is no token.", json!({
            "error": text("A word of OAuth 2.0."), "error_description": text("For people."), "statusCode": kind("integer", "The status again."),
            "message": text("The description again."),
        })),
        "ClientCredentials": object("An API key as a service principal.", json!({
            "grant_type": text("`client_credentials`."), "client_id": text("The API key's name."), "client_secret": text("The API key."),
            "scope": text("`https://dynamicsessions.io/.default` or `https://acasessions.io/.default`."),
        })),
        "Issuer": object("An OIDC discovery document.", json!({
            "issuer": text("The issuer."), "jwks_uri": text("Where its keys are."), "token_endpoint": text("Where tokens are."),
            "authorization_endpoint": text("The same."), "grant_types_supported": texts, "response_types_supported": texts,
            "subject_types_supported": texts, "id_token_signing_alg_values_supported": texts,
            "token_endpoint_auth_methods_supported": texts,
        })),
        "Keys": object("Public keys (RFC 7517).", json!({
            "keys": { "type": "array", "items": object("A key of the curve P-256.", json!({
                "kty": text("`EC`."), "crv": text("`P-256`."), "alg": text("`ES256`."), "use": text("`sig`."), "kid": text("Its id."),
                "x": text("A coordinate."), "y": text("A coordinate."),
            })) },
        })),
    })
}
