// The events of an execution, with types.

import { SandpoolError } from "./errors.js";
import type { SentEvent } from "./sse.js";
import type { ExecutionOutline, Raised, Shown } from "./wire.js";

/** How an execution ended. */
export type Ending = Pick<ExecutionOutline, "outcome" | "exitCode" | "detail" | "durationMilliseconds" | "stateLost" | "truncated">;

/** What happened in an execution. `id` counts up; `follow(..., { after: id })` goes on after an event. */
export type ExecutionEvent =
  | { type: "started"; id: number }
  | { type: "stdout" | "stderr"; id: number; text: string }
  | { type: "display" | "result"; id: number; value: Shown }
  | { type: "error"; id: number; error: Raised }
  | ({ type: "finished"; id: number } & Ending);

/** Reads an event; null for those of a newer server. An event without an id has that of the event before it. */
export function readEvent(sent: SentEvent, before: number): ExecutionEvent | null {
  const id = sent.id === null ? before : Number(sent.id);
  const data = parse(sent);
  switch (sent.name) {
    case "started":
      return { type: "started", id };
    case "stdout":
    case "stderr":
      return { type: sent.name, id, text: (data as { text: string }).text };
    case "display":
    case "result":
      return { type: sent.name, id, value: data as Shown };
    case "error":
      return { type: "error", id, error: data as Raised };
    case "finished":
      return { type: "finished", id, ...(data as Ending) };
    default:
      return null;
  }
}

function parse(sent: SentEvent): unknown {
  try {
    return JSON.parse(sent.data);
  } catch (cause) {
    const message = `The server sent an event ${JSON.stringify(sent.name)} whose data is no JSON.`;
    throw new SandpoolError(message, { status: 200, code: "StrangeAnswer", cause });
  }
}
