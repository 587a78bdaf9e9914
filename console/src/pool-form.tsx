// Makes a pool or changes one. The server checks what is written while it is written, and says which field is wrong.

import { useEffect, useRef, useState } from "preact/hooks";
import { Away, Refusal, type Schema, ask, get } from "./api";
import { address, go, useHere } from "./router";
import { Field, Head, Wrong } from "./ui";

type PoolObject = Schema<"PoolObject">;
type Json = null | boolean | number | string | Json[] | { [name: string]: Json };
type Spec = { [name: string]: Json };

const FRESH: PoolObject = {
  apiVersion: "sandpool.dev/v1alpha1",
  kind: "SessionPool",
  metadata: { name: "" },
  spec: { containerType: "PythonLTS", scaleConfiguration: { maxConcurrentSessions: 20, readySessionInstances: 1 }, resources: { memory: "1Gi" } },
};

/** A field of the form: where it is in the object's spec. */
interface Shown {
  path: string;
  label: string;
  hint: string;
  kind: "number" | "text";
  placeholder: string;
}

const GROUPS: { title: string; fields: Shown[] }[] = [
  {
    title: "How many",
    fields: [
      { path: "scaleConfiguration.maxConcurrentSessions", label: "Sessions at most", hint: "With the sandboxes that are ready", kind: "number", placeholder: "250" },
      { path: "scaleConfiguration.readySessionInstances", label: "Ready at least", hint: "Sandboxes that wait for a session", kind: "number", placeholder: "2" },
      { path: "scaleConfiguration.maxReadySessionInstances", label: "Ready at most", hint: "When new sessions come fast", kind: "number", placeholder: "16 times the least" },
      { path: "scaleConfiguration.waitWhenFullInSeconds", label: "Wait when full (s)", hint: "How long a new session waits for a place", kind: "number", placeholder: "1" },
    ],
  },
  {
    title: "What each may use",
    fields: [
      { path: "resources.cpu", label: "Processors", hint: "A fraction will do", kind: "number", placeholder: "1" },
      { path: "resources.memory", label: "Memory", hint: "Files included: 512Mi, 2Gi", kind: "text", placeholder: "2Gi" },
      { path: "resources.dataDisk", label: "Of that, on /mnt/data", hint: "Where files of sessions are", kind: "text", placeholder: "1Gi" },
      { path: "resources.tmpDisk", label: "Of that, on /tmp", hint: "", kind: "text", placeholder: "256Mi" },
      { path: "resources.pids", label: "Processes", hint: "And threads", kind: "number", placeholder: "256" },
    ],
  },
  {
    title: "How long",
    fields: [
      { path: "dynamicPoolConfiguration.lifecycleConfiguration.cooldownPeriodInSeconds", label: "Unused for (s)", hint: "Then a session ends", kind: "number", placeholder: "300" },
      { path: "dynamicPoolConfiguration.lifecycleConfiguration.maxAlivePeriodInSeconds", label: "In any case after (s)", hint: "Empty: no limit", kind: "number", placeholder: "no limit" },
      { path: "execution.maxTimeoutInSeconds", label: "An execution (s)", hint: "The longest time-out", kind: "number", placeholder: "220" },
      { path: "execution.queue", label: "Queue", hint: "Executions that may wait in a session", kind: "number", placeholder: "16" },
    ],
  },
];

function read(object: PoolObject, path: string): Json | undefined {
  let at: Json | undefined = object.spec as Spec;
  for (const name of path.split(".")) {
    if (at === null || typeof at !== "object" || Array.isArray(at)) return undefined;
    at = at[name];
  }
  return at;
}

/** The same with another value there; `undefined` takes it away, and the server's default holds. */
function written(object: PoolObject, path: string, value: Json | undefined): PoolObject {
  const spec = structuredClone(object.spec) as Spec;
  const names = path.split(".");
  let at = spec;
  for (const name of names.slice(0, -1)) {
    const inner = at[name];
    at = at[name] = inner !== null && typeof inner === "object" && !Array.isArray(inner) ? inner : {};
  }
  if (value === undefined) delete at[names.at(-1)!];
  else at[names.at(-1)!] = value;
  return { ...object, spec: spec as PoolObject["spec"] };
}

/** What only answers have is not sent. */
function applied(object: PoolObject): PoolObject {
  const { name, labels, annotations } = object.metadata;
  const { status: _, ...rest } = object;
  return { ...rest, metadata: { name, ...(labels ? { labels } : {}), ...(annotations ? { annotations } : {}) } };
}

export function PoolForm({ isNew }: { isNew: boolean }) {
  const name = useHere().query.get("pool") ?? "";
  const [object, setObject] = useState<PoolObject | null>(isNew ? FRESH : null);
  const [error, setError] = useState<Error | null>(null);
  useEffect(() => {
    if (isNew) return;
    const stop = new AbortController();
    get<PoolObject>(`/pools/${encodeURIComponent(name)}/object`, stop.signal).then(setObject, setError);
    return () => stop.abort();
  }, [isNew, name]);
  const title = isNew ? "New pool" : `Edit ${name}`;
  return (
    <>
      <Head title={title} crumbs={<a href={address("pools")}>Pools</a>} />
      {object ? <Form start={object} isNew={isNew} /> : error ? <Wrong error={error} /> : <p class="muted">Loading …</p>}
    </>
  );
}

function Form({ start, isNew }: { start: PoolObject; isNew: boolean }) {
  const [object, setObject] = useState(start);
  const [text, setText] = useState<string | null>(null);
  const [wrong, setWrong] = useState<{ target: string; message: string } | null>(null);
  const [verdict, setVerdict] = useState("");
  const [isTouched, setTouched] = useState(!isNew);
  const [isBusy, setBusy] = useState(false);
  const form = useRef<HTMLFormElement>(null);

  const fault = (error: unknown) => {
    // At its field it needs no name.
    if (error instanceof Refusal) setWrong({ target: error.target ?? "", message: error.target ? error.message.replace(`${error.target}: `, "") : error.message });
    else setWrong({ target: "", message: (error as Error).message });
    setVerdict("");
  };

  /** What the text says, if it is written as JSON; else what the fields say. */
  const meant = (): PoolObject => {
    if (text === null) return applied(object);
    try {
      return applied(JSON.parse(text) as PoolObject);
    } catch (why) {
      throw new Error(`That is not JSON yet: ${(why as Error).message}`);
    }
  };

  useEffect(() => {
    if (!isTouched) return;
    const stop = new AbortController();
    const timer = setTimeout(async () => {
      try {
        const asked = meant();
        if (!asked.metadata.name) return setWrong({ target: "metadata.name", message: "A pool needs a name." });
        const answer = await ask(`/pools/${encodeURIComponent(asked.metadata.name)}?dryRun=true`, { method: "PUT", json: asked, signal: stop.signal });
        const { result } = (await answer.json()) as Schema<"AppliedPool">;
        setWrong(null);
        setVerdict({ created: "Checked: this would be a new pool.", changed: "Checked: this would change the pool.", unchanged: "Checked: this changes nothing." }[result]);
      } catch (error) {
        if (!(error instanceof DOMException) && !(error instanceof Away)) fault(error);
      }
    }, 350);
    return () => {
      clearTimeout(timer);
      stop.abort();
    };
  }, [object, text, isTouched]);

  const change = (path: string, value: Json | undefined) => {
    setTouched(true);
    setObject(written(object, path, value));
  };

  const save = async (event: Event) => {
    event.preventDefault();
    setTouched(true);
    setBusy(true);
    try {
      const asked = meant();
      await ask(`/pools/${encodeURIComponent(asked.metadata.name || "-")}`, { method: "PUT", json: asked });
      go(address("pools"));
    } catch (error) {
      fault(error);
      requestAnimationFrame(() => form.current?.querySelector<HTMLElement>("[aria-invalid=true]")?.focus());
    }
    setBusy(false);
  };

  const known = ["metadata.name", "containerType", "image", "egress", ...GROUPS.flatMap((group) => group.fields.map((field) => field.path))];
  const place = wrong ? known.find((path) => isAbout(wrong.target, path)) : undefined;
  const wrongAt = (path: string) => (wrong && text === null && place === path ? wrong.message : undefined);
  const egress = (read(object, "egress") ?? {}) as { mode?: string; allow?: string[] };

  return (
    <form ref={form} class="stack" onSubmit={save} noValidate>
      <div class="actions" role="group" aria-label="How it is written">
        <button type="button" class="small" aria-pressed={text === null} onClick={() => text !== null && leaveText(text, setObject, setText, fault)}>
          Fields
        </button>
        <button type="button" class="small" aria-pressed={text !== null} onClick={() => text === null && setText(JSON.stringify(applied(object), null, 2))}>
          JSON
        </button>
      </div>
      {text !== null ? (
        <div class="card">
          <Field label="The object" hint="Every field of docs/pools.md" wrong={wrong?.message}>
            {(given) => (
              <textarea {...given} class="mono" rows={24} spellcheck={false} value={text} onInput={(event) => { setTouched(true); setText(event.currentTarget.value); }} />
            )}
          </Field>
        </div>
      ) : (
        <>
          <fieldset class="card">
            <legend class="visually-hidden">What it is</legend>
            <div class="fields">
              <Field label="Name" hint="1 to 63 small letters, digits and hyphens" wrong={wrongAt("metadata.name")}>
                {(given) => (
                  <input {...given} value={object.metadata.name} disabled={!isNew} autocomplete="off" spellcheck={false} maxLength={63}
                    onInput={(event) => { setTouched(true); setObject({ ...object, metadata: { ...object.metadata, name: event.currentTarget.value } }); }} />
                )}
              </Field>
              <Field label="What answers code" wrong={wrongAt("containerType")} hint={isNew ? "It cannot be changed later" : "It cannot be changed"}>
                {(given) => (
                  <select {...given} disabled={!isNew} value={String(read(object, "containerType") ?? "")} onChange={(event) => change("containerType", event.currentTarget.value)}>
                    <option value="PythonLTS">Python</option>
                    <option value="NodeLTS">Node.js</option>
                    <option value="Shell">Shell</option>
                    {read(object, "containerType") === "CustomContainer" && <option value="CustomContainer">Custom container</option>}
                  </select>
                )}
              </Field>
              <Field label="Image" hint="Empty: the usual one" wrong={wrongAt("image")}>
                {(given) => (
                  <input {...given} value={String(read(object, "image") ?? "")} spellcheck={false} autocomplete="off" onInput={(event) => change("image", event.currentTarget.value || undefined)} />
                )}
              </Field>
            </div>
          </fieldset>
          {GROUPS.map((group) => (
            <fieldset class="card" key={group.title}>
              <legend class="visually-hidden">{group.title}</legend>
              <h2 aria-hidden="true">{group.title}</h2>
              <div class="fields">
                {group.fields.map((field) => (
                  <Field key={field.path} label={field.label} hint={field.hint} wrong={wrongAt(field.path)}>
                    {(given) => (
                      <input {...given} value={String(read(object, field.path) ?? "")} placeholder={field.placeholder} inputMode={field.kind === "number" ? "decimal" : "text"}
                        autocomplete="off" spellcheck={false} onInput={(event) => change(field.path, meantBy(event.currentTarget.value, field.kind))} />
                    )}
                  </Field>
                ))}
              </div>
            </fieldset>
          ))}
          <fieldset class="card">
            <legend class="visually-hidden">What sessions may reach</legend>
            <h2 aria-hidden="true">What sessions may reach</h2>
            <div class="fields">
              <Field label="Egress" wrong={wrongAt("egress")}>
                {(given) => (
                  <select {...given} value={egress.mode ?? "none"} onChange={(event) => {
                    const mode = event.currentTarget.value;
                    change("egress", mode === "none" && !egress.allow ? undefined : { ...(egress as Spec), mode });
                  }}>
                    <option value="none">Nothing</option>
                    <option value="allow-list">Named hosts</option>
                    <option value="open">All that is public</option>
                  </select>
                )}
              </Field>
              {egress.mode === "allow-list" && (
                <Field label="Hosts" hint="One a line: pypi.org, *.example.com">
                  {(given) => (
                    <textarea {...given} rows={4} class="mono" spellcheck={false} value={(egress.allow ?? []).join("\n")}
                      onInput={(event) => change("egress", { ...(egress as Spec), allow: event.currentTarget.value.split(/\s+/).filter(Boolean) })} />
                  )}
                </Field>
              )}
            </div>
          </fieldset>
        </>
      )}
      {wrong && text === null && !place && <p class="note bad" role="alert">{wrong.target ? `${wrong.target}: ` : ""}{wrong.message}</p>}
      <div class="actions">
        <button type="submit" class="primary" disabled={isBusy}>{isNew ? "Create the pool" : "Apply the changes"}</button>
        <a class="button" href={address("pools")}>Cancel</a>
        <span class="muted" role="status">{wrong ? "" : verdict}</span>
      </div>
    </form>
  );
}

/** The server names a field with or without what stands before it: `spec.resources.memory`. */
function isAbout(target: string, path: string): boolean {
  const bare = target.replace(/^spec\./, "");
  return bare === path || bare.startsWith(`${path}.`) || bare.startsWith(`${path}[`);
}

function meantBy(text: string, kind: Shown["kind"]): Json | undefined {
  const trimmed = text.trim();
  if (trimmed === "") return undefined;
  // What is no number goes to the server as it is, which says what it takes.
  return kind === "number" && /^-?\d+(\.\d+)?$/.test(trimmed) ? Number(trimmed) : trimmed;
}

function leaveText(text: string, setObject: (object: PoolObject) => void, setText: (text: null) => void, fault: (error: unknown) => void): void {
  try {
    const object = JSON.parse(text) as PoolObject;
    if (typeof object?.metadata?.name !== "string" || typeof object.spec !== "object") throw new Error("An object has metadata with a name, and a spec.");
    setObject(object);
    setText(null);
  } catch (why) {
    fault(new Error(`That cannot be shown as fields: ${(why as Error).message}`));
  }
}
