// A session's files: what is there, what comes in and goes out, and how it looks.

import { useEffect, useRef, useState } from "preact/hooks";
import { type Place, type Schema, ask, filePath, get, sessionPath } from "./api";
import { parse } from "./csv";
import { bytes, count } from "./format";
import { usePoll } from "./poll";
import { change, useHere } from "./router";
import { Confirm, Empty, Icon, Stale, Wrong } from "./ui";

type Entry = Schema<"File">;

const LARGEST_TEXT = 2 << 20;
const LARGEST_IMAGE = 16 << 20;
const IMAGES: Record<string, string> = { png: "image/png", jpg: "image/jpeg", jpeg: "image/jpeg", gif: "image/gif", webp: "image/webp", svg: "image/svg+xml", bmp: "image/bmp", ico: "image/x-icon" };

const ending = (name: string) => name.toLowerCase().split(".").at(-1) ?? "";
const inside = (directory: string, name: string) => (directory ? `${directory}/${name}` : name);

export function Files({ place }: { place: Place }) {
  const { query } = useHere();
  const directory = query.get("path") ?? "";
  const shown = query.get("file");
  const polled = usePoll(
    `files ${JSON.stringify(place)} ${directory}`,
    async (signal) => get<Schema<"Files">>(sessionPath(place, "/files", directory ? { path: directory } : {}), signal),
    4000,
  );
  const [isOver, setOver] = useState(false);
  const [work, setWork] = useState<string | null>(null);
  const [error, setError] = useState<Error | null>(null);
  const [leaving, setLeaving] = useState<Entry | null>(null);
  const input = useRef<HTMLInputElement>(null);

  const upload = async (files: FileList | File[]) => {
    setError(null);
    const all = [...files];
    for (const [at, file] of all.entries()) {
      setWork(`Uploading ${file.name} (${bytes(file.size)})${all.length > 1 ? `, ${at + 1} of ${all.length}` : ""} …`);
      try {
        await ask(filePath(place, inside(directory, file.name)), { method: "PUT", body: file, headers: { "Content-Type": "application/octet-stream" } });
      } catch (why) {
        setError(new Error(`${file.name}: ${(why as Error).message}`));
        break;
      }
    }
    setWork(null);
    polled.again();
  };

  const download = async (entry: Entry) => {
    setError(null);
    setWork(`Getting ${entry.name} …`);
    try {
      const blob = await (await ask(filePath(place, inside(directory, entry.path)))).blob();
      const link = document.createElement("a");
      link.href = URL.createObjectURL(blob);
      link.download = entry.name;
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
    } catch (why) {
      setError(why as Error);
    }
    setWork(null);
  };

  const remove = async (entry: Entry) => {
    try {
      await ask(filePath(place, inside(directory, entry.path)), { method: "DELETE" });
      if (shown === entry.path) change({ file: null });
    } catch (why) {
      setError(why as Error);
    }
    setLeaving(null);
    polled.again();
  };

  const entries = polled.data?.value ?? [];
  const previewed = entries.find((entry) => entry.path === shown && entry.type === "file");
  const steps = directory.split("/").filter(Boolean);

  return (
    <div>
      <div
        class={`drop ${isOver ? "is-over" : ""}`}
        onDragOver={(event) => { event.preventDefault(); setOver(true); }}
        onDragLeave={() => setOver(false)}
        onDrop={(event) => { event.preventDefault(); setOver(false); if (event.dataTransfer) void upload(event.dataTransfer.files); }}
      >
        <span>Drop files here, or</span>
        <button type="button" onClick={() => input.current?.click()}>
          <Icon name="up" /> Choose files
        </button>
        <input ref={input} type="file" multiple hidden aria-label="Files to upload" onChange={(event) => { if (event.currentTarget.files) void upload(event.currentTarget.files); event.currentTarget.value = ""; }} />
        <span role="status">{work ?? `128 MiB each at most, to /mnt/data${directory ? `/${directory}` : ""}`}</span>
      </div>
      <Wrong error={error ?? polled.error} />
      <nav class="toolbar" aria-label="Directory">
        <button type="button" class="small quiet" onClick={() => change({ path: null, file: null })} aria-current={directory ? undefined : "true"}>
          /mnt/data
        </button>
        {steps.map((step, at) => (
          <>
            <span class="muted" aria-hidden="true">/</span>
            <button type="button" class="small quiet" onClick={() => change({ path: steps.slice(0, at + 1).join("/"), file: null })}>
              {step}
            </button>
          </>
        ))}
        <Stale of={polled} />
      </nav>
      {polled.data && entries.length === 0 ? (
        <div class="card">
          <Empty title="Nothing here yet">
            <p>What code writes to /mnt/data is here, and what you drop above is there for the code.</p>
          </Empty>
        </div>
      ) : (
        <div class={`files stale-able ${previewed ? "has-preview" : ""}`}>
          <div class="table-box">
            <table>
              <thead>
                <tr>
                  <th scope="col">Name</th>
                  <th scope="col" class="number">Size</th>
                  <th scope="col">Modified</th>
                  <th scope="col"><span class="visually-hidden">Actions</span></th>
                </tr>
              </thead>
              <tbody>
                {entries.map((entry) => (
                  <tr key={entry.path}>
                    <th scope="row">
                      {entry.type === "directory" ? (
                        <button type="button" class="link" onClick={() => change({ path: inside(directory, entry.path), file: null })}>
                          {entry.name}/
                        </button>
                      ) : entry.type === "file" ? (
                        <button type="button" class="link" aria-label={`Preview ${entry.name}`} aria-pressed={entry.path === shown} onClick={() => change({ file: entry.path === shown ? null : entry.path })}>
                          {entry.name}
                        </button>
                      ) : (
                        entry.name
                      )}
                    </th>
                    <td class="number">{entry.type === "file" ? bytes(entry.size) : ""}</td>
                    <td class="nowrap">{entry.modifiedAt ? new Date(entry.modifiedAt).toLocaleString() : "–"}</td>
                    <td class="right nowrap">
                      {entry.type === "file" && (
                        <button type="button" class="small quiet" aria-label={`Download ${entry.name}`} title="Download" onClick={() => download(entry)}>
                          <Icon name="down" />
                        </button>
                      )}
                      <button type="button" class="small quiet" aria-label={`Delete ${entry.name}`} title="Delete" onClick={() => setLeaving(entry)}>
                        <Icon name="trash" />
                      </button>
                    </td>
                  </tr>
                ))}
              </tbody>
            </table>
            {polled.data?.next && <p class="note">Only the first {count(entries.length)} entries are shown.</p>}
          </div>
          {previewed && <Preview key={`${previewed.path} ${previewed.modifiedAt} ${previewed.size}`} place={place} path={inside(directory, previewed.path)} entry={previewed} />}
        </div>
      )}
      {leaving && (
        <Confirm
          title={`Delete ${leaving.name}?`}
          text={leaving.type === "directory" ? "The directory goes with all that is in it." : "The file goes, and cannot be had back."}
          word="Delete"
          onYes={() => remove(leaving)}
          onNo={() => setLeaving(null)}
        />
      )}
    </div>
  );
}

type Look = { kind: "image"; url: string } | { kind: "table"; rows: string[][]; isCut: boolean } | { kind: "text"; text: string } | { kind: "none"; why: string };

async function look(place: Place, path: string, entry: Entry, signal: AbortSignal): Promise<Look> {
  const end = ending(entry.name);
  const image = IMAGES[end];
  const most = image ? LARGEST_IMAGE : LARGEST_TEXT;
  if (entry.size > most) return { kind: "none", why: `It is too large to be shown here: ${bytes(entry.size)}, and ${bytes(most)} at most. Download it.` };
  const data = await (await ask(filePath(place, path), { signal })).arrayBuffer();
  if (image) return { kind: "image", url: URL.createObjectURL(new Blob([data], { type: image })) };
  let text: string;
  try {
    text = new TextDecoder("utf-8", { fatal: true }).decode(data);
  } catch {
    return { kind: "none", why: "It is not text, and no image that is known here. Download it." };
  }
  if (end === "csv" || end === "tsv") return { kind: "table", ...parse(text, 500) };
  if (end === "json") {
    try {
      return { kind: "text", text: JSON.stringify(JSON.parse(text), null, 2) };
    } catch {
      // Shown as it is.
    }
  }
  return { kind: "text", text };
}

function Preview({ place, path, entry }: { place: Place; path: string; entry: Entry }) {
  const [shown, setShown] = useState<Look | null>(null);
  const [error, setError] = useState<Error | null>(null);
  useEffect(() => {
    const stop = new AbortController();
    let url = "";
    look(place, path, entry, stop.signal).then(
      (got) => {
        if (got.kind === "image") url = got.url;
        setShown(got);
      },
      (why: Error) => !stop.signal.aborted && setError(why),
    );
    return () => {
      stop.abort();
      if (url) URL.revokeObjectURL(url);
    };
  }, []);
  return (
    <section class="card" aria-label={`Preview of ${entry.name}`}>
      <div class="card-head">
        <h2>{entry.name}</h2>
        <span class="muted">{bytes(entry.size)}</span>
        <span class="grow" />
        <button type="button" class="small" onClick={() => change({ file: null })}>
          Close
        </button>
      </div>
      <Wrong error={error} />
      <div class="preview-body" tabIndex={0} role="group" aria-label="Content">
        {!shown ? !error && <p class="muted">Loading …</p> : <Looked look={shown} name={entry.name} />}
      </div>
    </section>
  );
}

function Looked({ look, name }: { look: Look; name: string }) {
  switch (look.kind) {
    case "image":
      return <img src={look.url} alt={`The image ${name}`} />;
    case "none":
      return <p class="muted">{look.why}</p>;
    case "text":
      return look.text ? <pre class="text">{look.text}</pre> : <p class="muted">It is empty.</p>;
    case "table": {
      const [head, ...rows] = look.rows;
      if (!head) return <p class="muted">It is empty.</p>;
      const isNumber = (cell: string | undefined) => cell !== undefined && /^-?[\d.,]+(e[-+]?\d+)?$/i.test(cell);
      const numbers = head.map((_, column) => rows.length > 0 && rows.every((row) => !row[column] || isNumber(row[column])));
      return (
        <>
          <table>
            <thead>
              <tr>
                {head.map((cell, at) => (
                  <th key={at} scope="col" class={numbers[at] ? "number" : ""}>{cell}</th>
                ))}
              </tr>
            </thead>
            <tbody>
              {rows.map((row, at) => (
                <tr key={at}>
                  {row.map((cell, column) => (
                    <td key={column} class={numbers[column] ? "number" : ""}>{cell}</td>
                  ))}
                </tr>
              ))}
            </tbody>
          </table>
          {look.isCut && <p class="muted">Only the first rows are shown.</p>}
        </>
      );
    }
  }
}
