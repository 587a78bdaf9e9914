// An execution as it is followed: its events, also across a server that goes away and comes back.

import { Away, type Place, Refusal, type Schema, ask, lostIt, returns, sessionPath } from "./api";
import { events } from "./sse";

export type Rich = Schema<"Shown">;

export type Piece =
  | { kind: "stdout" | "stderr"; text: string }
  | { kind: "rich"; value: Rich; isResult: boolean }
  | { kind: "error"; name: string; message: string; traceback: string }
  | { kind: "refused"; message: string };

export interface End {
  outcome: string;
  exitCode: number | null;
  detail: string | null;
  durationMilliseconds: number | null;
  stateLost: boolean;
  truncated: { stdout: number; stderr: number };
}

export interface Run {
  id: string;
  state: "queued" | "running" | "ended";
  pieces: Piece[];
  end: End | null;
  /** Characters that came and are not kept here; the server has them. */
  cut: number;
}

export const begun = (id: string): Run => ({ id, state: "queued", pieces: [], end: null, cut: 0 });

/** Characters of text that are kept of one stream's piece. */
const MOST = 200_000;

/** What is known after an event. */
export function after(run: Run, event: string, data: string): Run {
  const said = JSON.parse(data) as Record<string, unknown>;
  switch (event) {
    case "started":
      return { ...run, state: "running" };
    case "stdout":
    case "stderr":
      return withText(run, event, String(said["text"] ?? ""));
    case "display":
    case "result":
      return { ...run, pieces: [...run.pieces, { kind: "rich", value: said as unknown as Rich, isResult: event === "result" }] };
    case "error":
      return raised(run, said as unknown as { name: string; message: string; traceback: string });
    case "finished":
      return { ...run, state: "ended", end: said as unknown as End };
    default:
      return run;
  }
}

function withText(run: Run, kind: "stdout" | "stderr", text: string): Run {
  const last = run.pieces.at(-1);
  const isMore = last?.kind === kind;
  const all = isMore ? last.text + text : text;
  const over = Math.max(0, all.length - MOST);
  // The end of what is said is what people look for.
  const piece = { kind, text: over > 0 ? all.slice(over) : all };
  return { ...run, cut: run.cut + over, pieces: [...(isMore ? run.pieces.slice(0, -1) : run.pieces), piece] };
}

/** An exception. Its traceback has come on stderr too: it is shown once. */
function raised(run: Run, error: { name: string; message: string; traceback: string }): Run {
  const pieces = [...run.pieces];
  const last = pieces.at(-1);
  const traceback = error.traceback.trimEnd();
  if (last?.kind === "stderr" && traceback && last.text.trimEnd().endsWith(traceback)) {
    const rest = last.text.trimEnd().slice(0, -traceback.length);
    pieces.pop();
    if (rest.trim()) pieces.push({ kind: "stderr", text: rest });
  }
  return { ...run, pieces: [...pieces, { kind: "error", ...error }] };
}

/** A record as it would look had its events been followed. */
export function ofRecord(record: Schema<"Execution">): Run {
  let run = begun(record.id);
  if (record.stdout) run = withText(run, "stdout", record.stdout);
  if (record.stderr) run = withText(run, "stderr", record.stderr);
  const shown = record.displays.map((value): Piece => ({ kind: "rich", value, isResult: false }));
  if (record.result) shown.push({ kind: "rich", value: record.result, isResult: true });
  run = { ...run, pieces: [...run.pieces, ...shown] };
  if (record.error) run = raised({ ...run, pieces: run.pieces }, record.error);
  const end = record.state === "ended" ? (record as unknown as End) : null;
  return { ...run, state: record.state, end };
}

export interface Work {
  code?: string;
  command?: string;
}

/** Starts work under this id, or goes on following what has it, until it has ended. `draw` hears of every change, at most once a frame. */
export async function follow(place: Place, id: string, work: Work | null, draw: (run: Run) => void, signal: AbortSignal): Promise<void> {
  let run: Run = begun(id);
  let last: string | null = null;
  let isDrawing = false;
  const update = (next: Run) => {
    run = next;
    if (isDrawing) return;
    isDrawing = true;
    requestAnimationFrame(() => {
      isDrawing = false;
      draw(run);
    });
  };
  let isStarted = work === null;
  while (run.state !== "ended" && !signal.aborted) {
    const headers = { Accept: "text/event-stream", ...(last ? { "Last-Event-ID": last } : {}) };
    try {
      const answer: Response = isStarted
        ? await ask(sessionPath(place, `/executions/${id}/events`), { headers, signal })
        : // The same id finds what it started: asking twice is harmless.
          await ask(sessionPath(place, "/executions"), { method: "POST", json: { ...work, id }, headers, signal });
      isStarted = true;
      for await (const event of events(answer.body!)) {
        if (event.id) last = event.id;
        update(after(run, event.event, event.data));
      }
      if ((run as Run).state !== "ended") throw new Away("The stream was cut.");
    } catch (error) {
      if (signal.aborted) return;
      if (error instanceof Refusal) {
        update({ ...run, state: "ended", pieces: [...run.pieces, { kind: "refused", message: error.message }] });
        return;
      }
      lostIt("The way to it was cut.");
      await back(signal);
    }
  }
}

/** Waits until the server is there again. */
function back(signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const stop = returns.follow(done);
    signal.addEventListener("abort", done, { once: true });
    function done() {
      stop();
      resolve();
    }
  });
}

export async function stop(place: Place, id: string, how: "interrupt" | "kill"): Promise<void> {
  await ask(sessionPath(place, `/executions/${id}/stop`), { method: "POST", json: { how } });
}
