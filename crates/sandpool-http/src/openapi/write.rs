//! Writes the document: a table of operations for each dialect, and what they share.

#![expect(clippy::needless_pass_by_value, reason = "schemas are made where they are given")]

use serde_json::{Map, Value, json};

use super::schemas::{self, to};
use crate::azure::route::{ROUTES, Route};

/// Azure's base: everything under it is served under `/pools/{pool}` too.
pub(super) const AZURE_BASE: &str = "/subscriptions/{subscription}/resourceGroups/{resourceGroup}/sessionPools/{pool}";

/// Refusals, by status: the name of the shared response, and when.
const REFUSALS: [(u16, &str, &str); 12] = [
    (400, "Invalid", "A value of the request is wrong: `target` says which."),
    (401, "Unauthorized", "No token, or one that is not good here: the message says why."),
    (403, "Forbidden", "The token is good, but not for this; or the session itself may not touch that file."),
    (404, "Missing", "The pool, session, execution or file is not there."),
    (
        409,
        "Conflict",
        "A directory where a file was meant or the other way round, an execution that has ended, a pool that is not to be changed so, or a \
         session that is busy, suspended, or cannot be brought back: `code` says which.",
    ),
    (410, "Lost", "The session's sandbox died, and all in it. Said once before its name is used anew."),
    (413, "TooLarge", "The body, or a part of it, is over its limit."),
    (
        429,
        "TooMany",
        "Every session of the pool is in use, or too many executions wait. `Retry-After` says when to try again.",
    ),
    (500, "Broken", "A fault of the server."),
    (503, "Unavailable", "Sandboxes do not start, or the server stops: the message says why. `Retry-After`."),
    (405, "WrongMethod", "The header `Allow` says which methods there are."),
    (507, "Full", "No space is left in the session, or for snapshots."),
];

/// One operation of the document.
struct Operation {
    method: &'static str,
    path: String,
    value: Value,
}

/// Begins an operation.
fn on(method: &'static str, path: &str, id: &str, summary: &str) -> Operation {
    Operation {
        method,
        path: path.to_owned(),
        value: json!({ "operationId": id, "summary": summary, "parameters": [], "responses": {} }),
    }
}

impl Operation {
    fn tag(mut self, tag: &str) -> Self {
        self.value["tags"] = json!([tag]);
        self
    }

    fn about(mut self, text: &str) -> Self {
        self.value["description"] = json!(text);
        self
    }

    /// Needs no token.
    fn open(mut self) -> Self {
        self.value["security"] = json!([]);
        self
    }

    fn push(mut self, parameter: Value) -> Self {
        self.value["parameters"].as_array_mut().unwrap().push(parameter);
        self
    }

    fn query(self, name: &str, schema: Value, description: &str) -> Self {
        self.push(json!({ "name": name, "in": "query", "schema": schema, "description": description }))
    }

    fn shared(self, name: &str) -> Self {
        self.push(json!({ "$ref": format!("#/components/parameters/{name}") }))
    }

    fn takes(mut self, kind: &str, schema: Value, is_required: bool) -> Self {
        self.value["requestBody"] = json!({ "required": is_required, "content": { kind: { "schema": schema } } });
        self
    }

    fn gives(self, status: u16, description: &str, schema: &str) -> Self {
        self.answers(status, description, "application/json", to(schema))
    }

    fn answers(mut self, status: u16, description: &str, kind: &str, schema: Value) -> Self {
        let response = &mut self.value["responses"][status.to_string()];
        response["description"] = json!(description);
        response["content"][kind] = json!({ "schema": schema });
        self
    }

    fn nothing(self, description: &str) -> Self {
        self.bare(204, description)
    }

    /// An answer without a body.
    fn bare(mut self, status: u16, description: &str) -> Self {
        self.value["responses"][status.to_string()] = json!({ "description": description });
        self
    }

    fn refuses(mut self, statuses: &[u16]) -> Self {
        for status in statuses {
            let (_, name, _) = REFUSALS.iter().find(|(known, _, _)| known == status).unwrap();
            self.value["responses"][status.to_string()] = json!({ "$ref": format!("#/components/responses/{name}") });
        }
        self
    }
}

fn text() -> Value {
    json!({ "type": "string" })
}

fn number(least: u32, most: u32) -> Value {
    json!({ "type": "integer", "minimum": least, "maximum": most })
}

fn bytes() -> Value {
    json!({ "type": "string", "format": "binary" })
}

/// What every call with a token may be refused with.
const ALWAYS: [u16; 3] = [400, 401, 403];

/// What a call may be refused with that finds or makes a session.
const OPENING: [u16; 4] = [404, 410, 429, 503];

fn general() -> Vec<Operation> {
    let open = |path, id, summary| on("get", path, id, summary).tag("server").open();
    vec![
        open("/healthz", "isAlive", "The server lives").gives(200, "It does.", "Status"),
        open("/readyz", "isReady", "Every pool has its ready sandboxes").gives(200, "They have.", "Status").answers(
            503,
            "They have not: the message says which, and why. `Retry-After`.",
            "application/json",
            to("Problem"),
        ),
        on("get", "/metrics", "getMetrics", "What is counted, for Prometheus")
            .tag("server")
            .about("For a token of the tenant `default` that is not bound to pools, a session or a scope; open where the settings say so.")
            .answers(200, "It, in the form that `Accept` names.", "text/plain", text())
            .answers(200, "It, in the form that `Accept` names.", "application/openmetrics-text", text())
            .refuses(&[401, 403, 500]),
        open("/openapi.json", "describe", "This document").answers(
            200,
            "It.",
            "application/json",
            json!({ "type": "object", "additionalProperties": true }),
        ),
    ]
}

/// Streamable HTTP of the Model Context Protocol. What JSON-RPC refuses has a body of its kind.
fn hosted() -> Vec<Operation> {
    const PATH: &str = "/pools/{pool}/servers/{server}/mcp";
    let either = || json!({ "anyOf": [to("Problem"), to("JsonRpc")] });
    let with = |method, id, summary| {
        let session = json!({
            "name": "Mcp-Session-Id", "in": "header", "schema": text(),
            "description": "As `initialize` answered it; only `initialize` goes without.",
        });
        let operation = on(method, PATH, id, summary).tag("mcp").push(session).refuses(&[401, 403]);
        [(400, "No message that can be taken, or no session is named."), (404, "No such pool, server or session.")]
            .into_iter()
            .fold(operation, |operation, (status, when)| operation.answers(status, when, "application/json", either()))
    };
    let not_acceptable = |operation: Operation| {
        operation.answers(406, "`Accept` names nothing that could be answered.", "application/json", to("Problem"))
    };
    vec![
        not_acceptable(with("post", "sayToServer", "A message for a hosted MCP server"))
            .about(
                "`initialize` opens a session of the pool and starts the server in it. A request is answered by one JSON message, or by a \
                 stream that ends with its answer.",
            )
            .takes("application/json", to("JsonRpc"), true)
            .gives(200, "The answer.", "JsonRpc")
            .answers(200, "The answer.", "text/event-stream", text())
            .bare(202, "A notification or a response was passed on; or the request was taken back, and has no answer.")
            .gives(502, "The server could not be begun: the message says why.", "JsonRpc")
            .refuses(&[410, 413, 429, 503]),
        not_acceptable(with("get", "hearServer", "What a hosted MCP server says that belongs to no request")).answers(
            200,
            "A stream. The newest one of a session is served.",
            "text/event-stream",
            text(),
        ),
        with("delete", "endServer", "Ends a hosted MCP server's session, and all in it").nothing("It has ended.").refuses(&[503]),
    ]
}

fn native() -> Vec<Operation> {
    const SESSION: &str = "/pools/{pool}/sessions/{session}";
    const EGRESS: &str = "/pools/{pool}/sessions/{session}/egress";
    const EXECUTIONS: &str = "/pools/{pool}/sessions/{session}/executions";
    const EXECUTION: &str = "/pools/{pool}/sessions/{session}/executions/{execution}";
    const FILES: &str = "/pools/{pool}/sessions/{session}/files";
    const TERMINALS: &str = "/pools/{pool}/sessions/{session}/terminals";
    const TERMINAL: &str = "/pools/{pool}/sessions/{session}/terminals/{terminal}";
    const FILE: &str = "/pools/{pool}/sessions/{session}/files/{path}";
    let with =
        |method, path: &str, id, summary| on(method, path, id, summary).tag("native").shared("Tenant").refuses(&ALWAYS);
    let execution = |method, what: &str, id, summary| {
        with(method, &format!("{EXECUTION}{what}"), id, summary).refuses(&[404, 410, 503])
    };
    let file = |method, id, summary| {
        with(method, FILE, id, summary)
            .query("absolute", text(), "With the path `-`: the absolute path that is meant instead.")
            .refuses(&[404, 409, 410, 503])
    };
    vec![
        with("get", "/pools", "listPools", "The pools that the token is good for").gives(200, "The pools.", "Pools"),
        with("get", "/pools/{pool}", "getPool", "One pool").gives(200, "The pool.", "Pool").refuses(&[404]),
        with("put", "/pools/{pool}", "applyPool", "Makes a pool, or changes it")
            .about(
                "Only for an operator. Sessions that are there keep their sandboxes; the reservoir is made again where it is made from \
                 something else now. What may be reached holds for both at once. The same object again changes nothing.",
            )
            .query("dryRun", json!({ "type": "boolean" }), "Check all, and do nothing.")
            .takes("application/json", to("PoolObject"), true)
            .gives(200, "It was there.", "AppliedPool")
            .gives(201, "It is new.", "AppliedPool")
            .refuses(&[409, 413, 503]),
        with("delete", "/pools/{pool}", "removePool", "Removes a pool that was applied, and ends its sessions")
            .about("Only for an operator. A pool that was applied over one of the server's own gives way to that again.")
            .nothing("It is gone.")
            .refuses(&[404, 409, 503]),
        with("get", "/pools/{pool}/object", "getPoolObject", "A pool as an object, as it can be applied again")
            .about("Only for an operator: environment variables are in it.")
            .gives(200, "The object, and its status.", "PoolObject")
            .refuses(&[404]),
        with("post", "/pools/{pool}/mcp/credentials", "getMcpCredentials", "The key of a pool's MCP server")
            .about("Only for an operator. The key goes into the header `x-ms-apikey`.")
            .query("rotate", json!({ "type": "boolean" }), "Make a new one; the one before is good for five more minutes.")
            .gives(200, "The key.", "McpCredentials")
            .refuses(&[404, 500]),
        with("get", "/pools/{pool}/sessions", "listSessions", "A pool's sessions, oldest first")
            .query("limit", number(1, 1_000), "At most this many; by default 1,000.")
            .query("after", text(), "`next` of the page before.")
            .query("usage", json!({ "type": "boolean" }), "Say of each what it uses.")
            .gives(200, "A page.", "Sessions")
            .refuses(&[404]),
        with("get", SESSION, "getSession", "One session, and what it uses")
            .gives(200, "The session.", "SessionDetail")
            .refuses(&[404, 410, 503]),
        with("put", SESSION, "openSession", "Finds a session, or makes it")
            .takes("application/json", to("Opening"), false)
            .gives(200, "It was there.", "OpenedSession")
            .gives(201, "It is new.", "OpenedSession")
            .refuses(&OPENING),
        with("delete", SESSION, "endSession", "Ends a session, and all in it").nothing("It ends.").refuses(&[404]),
        with("post", "/pools/{pool}/sessions/{session}/suspend", "suspendSession", "Puts a session on the host's disk, and ends its sandbox")
            .about(
                "The next use of it, in any dialect, brings it back. What is kept depends on its level: `files` (`/mnt/data` and the home \
                 directory; variables, processes and known executions are lost), or all of its `machine`. One that is suspended stays so.",
            )
            .takes("application/json", to("Suspending"), false)
            .gives(200, "It is on disk.", "Session")
            .refuses(&[404, 409, 410, 413, 503, 507]),
        with("post", "/pools/{pool}/sessions/{session}/resume", "resumeSession", "Brings a suspended session back, as every use does")
            .gives(200, "It is there.", "OpenedSession")
            .refuses(&[404, 409, 410, 429, 503]),
        with("get", "/pools/{pool}/sessions/{session}/snapshots", "listSnapshots", "The snapshots of a session, the oldest first")
            .about("They are there until they are deleted, or their pool is removed; also when the session has ended.")
            .gives(200, "All of them.", "Snapshots")
            .refuses(&[404]),
        with("post", "/pools/{pool}/sessions/{session}/snapshots", "takeSnapshot", "Copies a session to the host's disk")
            .about("It stands still meanwhile, and goes on. What is kept is as when it is suspended.")
            .takes("application/json", to("Copying"), false)
            .gives(201, "It is on disk.", "Snapshot")
            .refuses(&[404, 409, 410, 413, 429, 503, 507]),
        with("delete", "/pools/{pool}/sessions/{session}/snapshots/{snapshot}", "deleteSnapshot", "Removes a snapshot, by its id or its name")
            .nothing("It is gone.")
            .refuses(&[404, 503]),
        with("post", "/pools/{pool}/sessions/{session}/fork", "forkSession", "Makes another session of a session, or of a snapshot of it")
            .about("The new session is its own from then on: a sandbox, a boot id and random numbers of its own. What is kept is as when it is suspended.")
            .takes("application/json", to("Forking"), true)
            .gives(201, "The new session.", "OpenedSession")
            .refuses(&[404, 409, 410, 413, 429, 503, 507]),
        with("get", EGRESS, "getEgress", "What a session may reach")
            .gives(200, "What its pool allows, and what of it the session does.", "SessionEgress")
            .refuses(&[404, 410, 503]),
        with("put", EGRESS, "narrowEgress", "Narrows what a session may reach")
            .about("It takes away from what the pool allows, and never adds. What is forbidden by it is cut before the answer.")
            .takes("application/json", to("Egress"), true)
            .gives(200, "It holds.", "SessionEgress")
            .refuses(&[404, 410, 413, 503]),
        with("delete", EGRESS, "widenEgress", "Gives back to a session all that its pool may reach")
            .nothing("It holds.")
            .refuses(&[404, 410, 503]),
        with("get", "/pools/{pool}/sessions/{session}/egress/decisions", "listEgressDecisions", "What a session reached, and what it was refused")
            .about("The last 256 decisions, oldest first. As server-sent events: those, and a `decision` for each that follows.")
            .query("limit", number(1, 256), "At most this many; by default 256.")
            .shared("After")
            .shared("LastEventId")
            .gives(200, "A page; or a stream.", "EgressDecisions")
            .answers(200, "A page; or a stream.", "text/event-stream", text())
            .refuses(&[404, 410, 503]),
        with("get", "/pools/{pool}/sessions/{session}/samples", "getSamples", "What a session uses, second by second")
            .about(
                "Samples are taken from the first call on until a minute after the last, and those of the last five minutes are kept. As \
                 server-sent events: those, and a `sample` for each that follows. It does not count as use.",
            )
            .shared("After")
            .shared("LastEventId")
            .gives(200, "The samples; or a stream.", "Samples")
            .answers(200, "The samples; or a stream.", "text/event-stream", text())
            .refuses(&[404, 410, 503]),
        with("get", EXECUTIONS, "listExecutions", "A session's executions, oldest first, without their output")
            .gives(200, "Those that are still known.", "Executions")
            .refuses(&[404, 410, 503]),
        with("post", EXECUTIONS, "execute", "Runs something in a session that is found or made")
            .about("With `Accept: text/event-stream` the answer is the stream of its events. A client that goes away ends nothing.")
            .query(
                "existing",
                json!({ "type": "boolean" }),
                "Only in a session that is there: else 404. For one that was made with variables, secrets or narrower egress.",
            )
            .shared("Bytes")
            .shared("After")
            .shared("LastEventId")
            .takes("application/json", to("ExecutionRequest"), true)
            .gives(200, "It has ended; or its events.", "Execution")
            .answers(200, "It has ended; or its events.", "text/event-stream", text())
            .gives(202, "It goes on. `Location` is where it is found again.", "Execution")
            .refuses(&OPENING)
            .refuses(&[413]),
        execution("get", "", "getExecution", "One execution, with its output so far")
            .query("wait", json!({ "type": "number", "minimum": 0, "maximum": 600 }), "Seconds to wait for its end.")
            .shared("Bytes")
            .gives(200, "The execution.", "Execution"),
        execution("get", "/events", "followExecution", "Its events, those kept and those to come")
            .about("Server-sent events: `started`, `stdout`, `stderr`, `display`, `result`, `error`, `finished`. `id` counts up.")
            .shared("Bytes")
            .shared("After")
            .shared("LastEventId")
            .answers(200, "The stream, until it has ended.", "text/event-stream", text()),
        execution("post", "/stop", "stopExecution", "Interrupts or kills it")
            .takes("application/json", to("Stop"), false)
            .nothing("It was told, or has ended.")
            .refuses(&[413]),
        execution("post", "/input", "feedExecution", "Bytes for its standard input or terminal; none are the end of input")
            .takes("application/octet-stream", bytes(), false)
            .nothing("They were taken.")
            .refuses(&[409, 413]),
        execution("post", "/resize", "resizeExecution", "A new size for its terminal")
            .takes("application/json", to("Size"), true)
            .nothing("It was told.")
            .refuses(&[409, 413]),
        with("post", "/pools/{pool}/sessions/{session}/previews", "makePreview", "An address of a port of a session")
            .about("Whoever has the address reaches what listens there, without a token, until it expires or the session ends.")
            .takes("application/json", to("PreviewRequest"), true)
            .gives(201, "The address, in two forms.", "Preview")
            .refuses(&[404, 410, 413, 500, 503]),
        with("get", "/pools/{pool}/sessions/{session}/logs", "readLogs", "What the program of a container session has written")
            .query("after", json!({ "type": "integer", "minimum": 0 }), "`next` of the page before.")
            .gives(200, "A piece of it.", "Logs")
            .refuses(&[404, 410, 503]),
        with("get", TERMINALS, "listTerminals", "A session's terminals, oldest first")
            .gives(200, "Those that are known: the ones that have ended make room for new ones.", "Terminals")
            .refuses(&[404, 410, 503]),
        with("get", TERMINAL, "attachTerminal", "Attaches to a terminal, over a WebSocket")
            .about(
                "It is made where it is not there. Messages: `docs/terminals.md`. The protocol is `sandpool.terminal.v1`; a browser offers \
                 its token as another, `sandpool.bearer.TOKEN`.",
            )
            .query("rows", number(1, 65_535), "Of the window; 24 for a new terminal.")
            .query("columns", number(1, 65_535), "Of the window; 80 for a new terminal.")
            .query("term", text(), "The value of `TERM`; `xterm-256color` by default.")
            .query("command", json!({ "type": "array", "items": text() }), "The program of a new terminal, a word each; the login shell by default.")
            .query("after", json!({ "type": "integer", "minimum": 0 }), "Bytes of its output that are known already.")
            .query("execution", text(), "Only this one, as `attached` has said it: else 404.")
            .query("create", json!({ "type": "boolean" }), "`false`: 404 where it is not there; one that has ended is found too.")
            .query("existing", json!({ "type": "boolean" }), "Only in a session that is there: else 404.")
            .bare(101, "It is a WebSocket now.")
            .answers(426, "It was not asked for with an upgrade.", "application/json", to("Problem"))
            .refuses(&OPENING),
        with("delete", TERMINAL, "endTerminal", "Hangs a terminal up, and ends all that it started")
            .nothing("It is not there any more.")
            .refuses(&[404, 410, 503]),
        with("get", FILES, "listFiles", "A directory's entries, sorted by path")
            .query("path", text(), "The directory, relative to `/mnt/data` or absolute.")
            .query("recursive", json!({ "type": "boolean" }), "Also what is in directories below.")
            .query("limit", number(1, 1_000), "At most this many; by default 1,000.")
            .query("after", text(), "`next` of the page before.")
            .gives(200, "A page.", "Files")
            .refuses(&[404, 409, 410, 503]),
        file("get", "readFile", "A file's bytes").answers(200, "The bytes.", "application/octet-stream", bytes()),
        file("put", "writeFile", "Writes a file, whole or not at all")
            .takes("application/octet-stream", bytes(), true)
            .gives(200, "Its record.", "File")
            .refuses(&[413, 429, 507]),
        file("delete", "removeFile", "Removes a file, or a directory with all in it").nothing("It is gone."),
    ]
}

/// What is passed on to a program of a session, and answered by it.
fn ports() -> Vec<Operation> {
    let passed = |method: &'static str| {
        on(method, "/pools/{pool}/sessions/{session}/ports/{port}/{path}", &format!("{method}Port"), "Passed on to a port of a session")
            .tag("ports")
            .about(
                "Every method, WebSockets too: `docs/ports.md`. The token and cookies are taken out; the answer has an origin of its own \
                 in a browser.",
            )
            .shared("Tenant")
            .answers(200, "What the program answers, with any status.", "*/*", bytes())
            .gives(502, "Nothing listens there, or it does not speak HTTP.", "Problem")
            .gives(504, "It did not answer in time.", "Problem")
            .refuses(&ALWAYS)
            .refuses(&[404, 410, 503])
    };
    ["get", "put", "post", "patch", "delete"].into_iter().map(passed).collect()
}

/// What an operation of Azure's takes and gives.
#[derive(Clone, Copy)]
enum Shape {
    Execute(&'static str),
    Read(&'static str),
    Upload(&'static str),
    /// A JSON answer of this schema, about a session.
    Json(&'static str),
    /// A JSON answer about the pool.
    OfPool(&'static str),
    Bytes,
    Nothing,
    Text,
}

fn azure() -> Vec<Operation> {
    use Shape::{Bytes, Execute, Json, Nothing, OfPool, Read, Text, Upload};
    const NEW: &str = "AzureExecution";
    const OLD: &str = "AzureLegacyExecution";
    let table = [
        ("post", "executions", "azureExecute", Execute(NEW)),
        ("get", "executions/{id}", "azureGetExecution", Read(NEW)),
        ("post", "code/execute", "azureCodeExecute", Execute(OLD)),
        ("post", "execute", "azureDraftExecute", Execute(OLD)),
        ("post", "python/execute", "azurePythonExecute", Execute(OLD)),
        ("get", "execute/{id}", "azureDraftGetExecution", Read(OLD)),
        ("get", "code/execute/{id}", "azureCodeGetExecution", Read(OLD)),
        ("post", "code/executions", "azureCodeExecutions", Execute(NEW)),
        ("get", "code/executions/{id}", "azureCodeExecutionsGet", Read(NEW)),
        ("post", "files", "azureUpload", Upload("AzureFile")),
        ("post", "files/upload", "azureUploadLegacy", Upload("AzureFiles")),
        ("post", "files:uploadFile", "azureUploadDraft", Upload("AzureFiles")),
        ("post", "files/{name}:uploadFile", "azureUploadNamed", Upload("AzureFiles")),
        ("post", "python/uploadFile", "azurePythonUpload", Upload("AzureFile")),
        ("get", "files", "azureListFiles", Json("AzureFiles")),
        ("get", "python/files", "azurePythonFiles", Json("AzureFiles")),
        ("get", "files/{name}", "azureGetFile", Json("AzureFile")),
        ("get", "files/{name}/content", "azureDownload", Bytes),
        ("get", "files/content/{name}", "azureDownloadLegacy", Bytes),
        ("get", "python/downloadFile", "azurePythonDownload", Bytes),
        ("post", "files/{name}:downloadFile", "azureDownloadDraft", Json("AzureContent")),
        ("get", "files/{name}:downloadFile", "azureDownloadDraftGet", Json("AzureContent")),
        ("delete", "files/{name}", "azureRemoveFile", Nothing),
        ("get", "session", "azureGetSession", Json("AzureSession")),
        ("delete", "session", "azureEndSession", Nothing),
        ("get", "listSessions", "azureListSessions", OfPool("AzureSessions")),
        ("get", "metadata", "azureMetadata", OfPool("AzureMetadata")),
        ("post", ".management/getSession", "azureManagedSession", Json("AzureSession")),
        ("get", ".management/getSession", "azureManagedSessionGet", Json("AzureSession")),
        ("post", ".management/listSessions", "azureManagedSessions", OfPool("AzureManagedSessions")),
        ("get", ".management/listSessions", "azureManagedSessionsGet", OfPool("AzureManagedSessions")),
        ("post", ".management/stopSession", "azureManagedStop", Text),
    ];
    let operation = |(method, path, id, shape): (&'static str, &str, &str, Shape)| {
        let is_it = |route: &&Route| {
            route.method.as_str().eq_ignore_ascii_case(method) && route.path.replace("...}", "}") == path
        };
        let route = ROUTES.iter().find(is_it).unwrap_or_else(|| panic!("there is no route {method} {path}"));
        let summary = route.about.trim_end_matches('.');
        let begun =
            on(method, &format!("{AZURE_BASE}/{path}"), id, summary).tag("azure").shared("ApiVersion").shared("Tenant");
        let begun = begun.refuses(&ALWAYS).refuses(&[404, 410, 503]);
        let begun = match shape {
            OfPool(_) => begun.query("skip", number(0, u32::MAX), "Sessions to leave out.").query(
                "limit",
                number(1, 1_000),
                "At most this many.",
            ),
            _ => begun.shared("Identifier"),
        };
        let begun = if path.contains("iles") && !path.starts_with("python/") {
            begun.query("path", text(), "The directory, below `/mnt/data`.").refuses(&[409])
        } else {
            begun
        };
        let begun = match path {
            "python/downloadFile" => begun.query("filename", text(), "The file.").refuses(&[409]),
            "files" if method == "get" => begun
                .query("recursive", json!({ "type": "boolean" }), "Also what is in directories below.")
                .query("after", text(), "Where to go on; `nextLink` has it.")
                .refuses(&[429]),
            _ => begun,
        };
        match shape {
            Execute(schema) => begun
                .takes("application/json", to("AzureExecutionRequest"), true)
                .gives(200, "It has ended, however.", schema)
                .gives(202, "It was asked for asynchronously, and goes on.", schema)
                .refuses(&[413, 429]),
            Read(schema) | Json(schema) | OfPool(schema) => begun.gives(200, "It.", schema),
            Upload(schema) => begun
                .takes("multipart/form-data", json!({ "type": "object", "properties": { "file": bytes() } }), true)
                .gives(200, "What was stored.", schema)
                .refuses(&[413, 429, 507]),
            Bytes => begun.answers(200, "The bytes.", "application/octet-stream", bytes()),
            Nothing => begun.nothing("It is gone."),
            Text => begun.answers(200, "It ends.", "text/plain", text()),
        }
    };
    table.into_iter().map(operation).collect()
}

fn identity() -> Vec<Operation> {
    let refused = |operation: Operation, statuses: &[u16]| {
        statuses.iter().fold(operation, |operation, status| operation.gives(*status, "Why not.", "IdentityError"))
    };
    let with = |method, path, id, summary| on(method, path, id, summary).tag("identity").open();
    let asking = |operation: Operation| {
        operation
            .query("resource", text(), "`https://dynamicsessions.io` or `https://acasessions.io`.")
            .query("client_id", text(), "Who asks, for the answer.")
            .query("api-version", text(), "Any.")
    };
    let secret = json!({ "name": "X-IDENTITY-HEADER", "in": "header", "schema": text(), "description": "The secret that `sandpool env` prints as IDENTITY_HEADER." });
    let metadata = json!({ "name": "Metadata", "in": "header", "schema": text(), "description": "`true`." });
    let app_service = |method, id| {
        let operation =
            asking(with(method, "/msi/token", id, "A token, by managed identity (App Service)")).push(secret.clone());
        refused(operation.gives(200, "A token.", "ManagedIdentityToken"), &[400, 401, 500])
    };
    let vm = asking(with(
        "get",
        "/metadata/identity/oauth2/token",
        "tokenForVm",
        "A token, by managed identity (virtual machine); off by default",
    ));
    let client = with("post", "/{tenant}/oauth2/v2.0/token", "tokenForClient", "A token for an API key").takes(
        "application/x-www-form-urlencoded",
        to("ClientCredentials"),
        true,
    );
    let issuer = |path, id, summary| with("get", path, id, summary).gives(200, "The document.", "Issuer");
    vec![
        app_service("get", "tokenForApp"),
        app_service("post", "tokenForAppPost"),
        refused(vm.push(metadata).gives(200, "A token.", "ManagedIdentityToken"), &[400, 403, 500]),
        refused(client.gives(200, "A token.", "ServicePrincipalToken"), &[400, 401, 500]),
        issuer("/.well-known/openid-configuration", "issuer", "Our issuer"),
        issuer(
            "/{tenant}/.well-known/openid-configuration",
            "tenantIssuer",
            "A tenant's issuer: ours, whichever it is",
        ),
        issuer("/{tenant}/v2.0/.well-known/openid-configuration", "tenantIssuerV2", "The same"),
        with("get", "/.well-known/jwks.json", "keys", "Our public keys").gives(200, "The keys.", "Keys"),
    ]
}

/// The schema of a parameter in a path.
fn in_path(name: &str) -> Value {
    let (schema, description) = match name {
        "pool" => (json!({ "type": "string", "maxLength": 63 }), "The pool's name."),
        "session" => {
            (json!({ "type": "string", "minLength": 4, "maxLength": 128 }), "The session's name, percent-encoded.")
        }
        "execution" => (json!({ "type": "string", "format": "uuid" }), "The execution's id."),
        "terminal" => {
            (json!({ "type": "string", "minLength": 1, "maxLength": 64 }), "The terminal's name, percent-encoded.")
        }
        "snapshot" => (json!({ "type": "string", "minLength": 1, "maxLength": 64 }), "The snapshot's id, or its name."),
        "port" => (number(1, 65_535), "The port, on the session's loopback."),
        "path" => (text(), "The file, below `/mnt/data`, or a program's path. It may have slashes in it."),
        "name" => (text(), "The file's name, below `path`."),
        "id" => (text(), "The execution's id."),
        "tenant" => (text(), "Any."),
        "server" => (text(), "The server's name, as the pool's settings have it."),
        "subscription" | "resourceGroup" => (text(), "Any: Azure's address has it."),
        other => panic!("{other} is in a path, and has no description"),
    };
    json!({ "name": name, "in": "path", "required": true, "schema": schema, "description": description })
}

/// The document.
pub(super) fn document() -> Value {
    let mut paths: Map<String, Value> = Map::new();
    for operation in [general(), native(), ports(), hosted(), azure(), identity()].into_iter().flatten() {
        let item = paths.entry(operation.path.clone()).or_insert_with(|| {
            let names: Vec<_> = operation.path.split('{').skip(1).filter_map(|rest| rest.split('}').next()).collect();
            if names.is_empty() {
                json!({})
            } else {
                json!({ "parameters": names.into_iter().map(in_path).collect::<Vec<_>>() })
            }
        });
        assert!(item[operation.method].is_null(), "{} {} is there twice", operation.method, operation.path);
        let mut value = operation.value;
        if value["parameters"] == json!([]) {
            value.as_object_mut().unwrap().remove("parameters");
        }
        item[operation.method] = value;
    }
    let refusals: Map<_, _> = REFUSALS
        .iter()
        .map(|(_, name, when)| {
            let content = json!({ "application/json": { "schema": to("Problem") } });
            ((*name).to_owned(), json!({ "description": when, "content": content }))
        })
        .collect();
    let query = |name: &str, schema: Value, description: &str| json!({ "name": name, "in": "query", "schema": schema, "description": description });
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Sandpool",
            "version": env!("CARGO_PKG_VERSION"),
            "summary": "Pools of pre-warmed, isolated sandboxes for code that nobody has read",
            "description": "Two dialects over the same sessions: the native API, and the data plane of Azure Container Apps dynamic \
                sessions in all its generations. What is tagged `azure` is served under `/pools/{pool}` too, and under \
                `.../resourceGroups/{resourceGroup}/providers/Microsoft.App/sessionPools/{pool}`. Every path answers 405 to methods it \
                does not have.",
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "tags": [
            { "name": "server", "description": "The server itself." },
            { "name": "native", "description": "The native API: `docs/api.md` tells it in words." },
            { "name": "ports", "description": "What programs of sessions serve: `docs/ports.md` tells it in words." },
            { "name": "mcp", "description": "Hosted MCP servers: `docs/mcp-servers.md` tells it in words." },
            { "name": "azure", "description": "Azure's data plane." },
            { "name": "identity", "description": "Where unmodified clients get their tokens." },
        ],
        "security": [{ "bearer": [] }],
        "paths": paths,
        "components": {
            "securitySchemes": { "bearer": { "type": "http", "scheme": "bearer", "description": "A token (JWT), or an API key." } },
            "parameters": {
                "Bytes": query("bytes", json!({ "type": "string", "enum": ["text", "base64"] }), "How output is given."),
                "After": query("after", json!({ "type": "integer", "minimum": 0 }), "The last event that was seen."),
                "LastEventId": {
                    "name": "Last-Event-ID", "in": "header", "schema": { "type": "integer", "minimum": 0 },
                    "description": "The same, as browsers say it. The later one counts.",
                },
                "ApiVersion": query("api-version", text(), "A date, with `-preview` or without; routes decide the shape of answers, not this."),
                "Tenant": query("tenant", json!({ "type": "string", "maxLength": 63 }), "For an operator: the tenant that is meant. Lists without it are of all tenants."),
                "Identifier": query("identifier", json!({ "type": "string", "minLength": 4, "maxLength": 128 }), "The session."),
            },
            "responses": refusals,
            "schemas": schemas::all(),
        },
    })
}
