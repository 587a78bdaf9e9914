// Executions: their records, and their events as they happen.

import { fromBase64 } from "./bytes.js";
import { NotFoundError, SandpoolError } from "./errors.js";
import { readEvent, type ExecutionEvent } from "./events.js";
import { Breaks, sleep, type Answer, type Call, type Http } from "./http.js";
import { EventParser } from "./sse.js";
import type { ExecutionRecord, ExecutionRequest, Raised, Shown, Size } from "./wire.js";

/** How long one request waits for an execution's end, so that no proxy in between loses its patience. */
const WAIT_SECONDS = 30;

/** The most bytes of input in one request. */
const INPUT_BYTES = 16 << 20;

/** How hard an execution is stopped: as by Ctrl-C, which becomes firmer if it is not heard, or at once. */
export type How = "interrupt" | "kill";

/** What can be done with an execution, whatever is known of it. */
export class Running {
  readonly id: string;
  protected readonly http: Http;
  protected readonly path: string;

  /** @param executions the path of the session's executions. */
  constructor(http: Http, executions: string, id: string) {
    this.id = id;
    this.http = http;
    this.path = `${executions}/${encodeURIComponent(id)}`;
  }

  /** Ends it. What has ended already stays as it is. */
  async stop(how: How = "interrupt", options: { limitMs?: number } = {}): Promise<void> {
    await this.http.send({ method: "POST", path: `${this.path}/stop`, json: { how }, ...options });
  }

  /** Sends input to what was started with `stdin: true` or a terminal. It returns when the program has taken it, and is never sent twice. */
  async input(data: string | Uint8Array): Promise<void> {
    const bytes = typeof data === "string" ? new TextEncoder().encode(data) : data;
    // No bytes would be the end of input.
    for (let at = 0; at < bytes.length; at += INPUT_BYTES) {
      await this.#feed(bytes.subarray(at, at + INPUT_BYTES));
    }
  }

  /** Ends the input; on a terminal this is Ctrl-D. */
  async endInput(): Promise<void> {
    await this.#feed(new Uint8Array());
  }

  /** Tells its terminal a new size. */
  async resize(size: Size): Promise<void> {
    await this.http.send({ method: "POST", path: `${this.path}/resize`, json: size });
  }

  async #feed(bytes: Uint8Array): Promise<void> {
    // A request that was refused in the middle may have been taken in part.
    await this.http.send({ method: "POST", path: `${this.path}/input`, body: bytes, isRepeatable: false });
  }
}

/** An execution, as it was when it was asked for. */
export class Execution extends Running {
  /** The record, as it came. */
  readonly record: ExecutionRecord;
  readonly #executions: string;

  constructor(http: Http, executions: string, record: ExecutionRecord) {
    super(http, executions, record.id);
    this.record = record;
    this.#executions = executions;
  }

  get state(): ExecutionRecord["state"] {
    return this.record.state;
  }

  /** How it ended; null until it has. */
  get outcome(): ExecutionRecord["outcome"] {
    return this.record.outcome;
  }

  /** It ended as one would wish: code without an exception, a command with exit code 0. */
  get succeeded(): boolean {
    return this.outcome === "succeeded" || (this.outcome === "exited" && this.exitCode === 0);
  }

  /** Of a command: its exit code, or 128 + the signal that ended it. */
  get exitCode(): number | null {
    return this.record.exitCode;
  }

  /** Why it was not started, or how it died. */
  get detail(): string | null {
    return this.record.detail;
  }

  /** Standard output so far. Bytes that are no text are U+FFFD in it. */
  get stdout(): string {
    return this.record.stdout ?? "";
  }

  /** Standard error so far. */
  get stderr(): string {
    return this.record.stderr ?? "";
  }

  /** The value of the last expression. */
  get result(): Shown | null {
    return this.record.result;
  }

  /** What was shown on the way, such as figures. */
  get displays(): Shown[] {
    return this.record.displays;
  }

  /** The exception that ended it. */
  get error(): Raised | null {
    return this.record.error;
  }

  /** The interpreter was replaced: the session's variables are gone. */
  get stateLost(): boolean {
    return this.record.stateLost;
  }

  /** Bytes of output that were dropped over the limit. */
  get truncated(): { stdout: number; stderr: number } {
    return this.record.truncated;
  }

  /** Wall-clock time inside the sandbox. */
  get durationMilliseconds(): number | null {
    return this.record.durationMilliseconds;
  }

  /** All that was shown in this media type: the displays in their order, then the result. */
  images(type = "image/png"): Uint8Array<ArrayBuffer>[] {
    const shown = this.result ? [...this.displays, this.result] : this.displays;
    return shown.map((value) => formBytes(value, type)).filter((bytes) => bytes !== null);
  }

  /** The same execution when it has ended. Aborting ends the waiting, not the execution. */
  async wait(options: { signal?: AbortSignal | undefined } = {}): Promise<Execution> {
    if (this.state === "ended") return this;
    return new Execution(this.http, this.#executions, await whenEnded(this.http, this.path, options.signal));
  }
}

/** The record of the execution at `path` when it has ended, however long that takes, also through broken connections. */
export async function whenEnded(
  http: Http,
  path: string,
  signal: AbortSignal | undefined,
  breaks = new Breaks(),
): Promise<ExecutionRecord> {
  const call: Call = { method: "GET", path, query: { wait: WAIT_SECONDS }, waitMs: WAIT_SECONDS * 1000, signal };
  for (;;) {
    try {
      const record = await http.json<ExecutionRecord>(call);
      if (record.state === "ended") return record;
      breaks.reset();
    } catch (error) {
      await breaks.next(error, signal);
    }
  }
}

/** A value's form of this media type as bytes; null if it has none. */
export function formBytes(value: Shown, type: string): Uint8Array<ArrayBuffer> | null {
  const form = value.forms.find((form) => form.type === type);
  if (form?.base64 !== undefined) return fromBase64(form.base64);
  return form?.text === undefined ? null : new TextEncoder().encode(form.text);
}

/** What a stream begins with. */
export interface Following {
  /** What to start; without it the execution is there already. */
  request?: ExecutionRequest;
  /** The last event that was seen. */
  after?: number | undefined;
  signal?: AbortSignal | undefined;
}

/**
 * The events of an execution, as they happen, until it has ended. Nothing is asked for before they are read. A connection that breaks
 * is made again and goes on after the last event.
 *
 * Whoever stops to read leaves the execution running. The signal that was given to `Session.stream` interrupts it.
 */
export class ExecutionStream extends Running implements AsyncIterable<ExecutionEvent> {
  readonly #executions: string;
  readonly #begin: Following;

  constructor(http: Http, executions: string, id: string, begin: Following) {
    super(http, executions, id);
    this.#executions = executions;
    this.#begin = begin;
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<ExecutionEvent, void, undefined> {
    const { request, signal } = this.#begin;
    let last = this.#begin.after ?? 0;
    let hasBegun = false;
    const breaks = new Breaks();
    const settle = interruptOn(request && signal, this);
    try {
      for (;;) {
        let failure: unknown = new SandpoolError("The stream of events ended early.", { status: 0, code: "ConnectionFailed" });
        // Text that has no id of its own goes with the event behind it: if the connection breaks between them, it comes again.
        let held: ExecutionEvent[] = [];
        try {
          const answer = await this.http.open(hasBegun || !request ? this.#events(last) : this.#start(request));
          hasBegun = true;
          for await (const sent of sentEvents(answer)) {
            const event = readEvent(sent, last);
            if (!event || (sent.id !== null && event.id <= last)) continue;
            held.push(event);
            if (sent.id === null) continue;
            last = event.id;
            breaks.reset();
            yield* held;
            held = [];
            if (event.type === "finished") return;
          }
        } catch (error) {
          if (!hasBegun) throw error;
          failure = error;
        }
        await breaks.next(failure, signal);
      }
    } finally {
      await settle();
    }
  }

  #start(request: ExecutionRequest): Call {
    const { signal } = this.#begin;
    return { method: "POST", path: this.#executions, json: request, accept: "text/event-stream", signal };
  }

  #events(after: number): Call {
    const { signal } = this.#begin;
    return { method: "GET", path: `${this.path}/events`, query: { after }, accept: "text/event-stream", signal };
  }
}

async function* sentEvents(answer: Answer) {
  const parser = new EventParser();
  for await (const piece of answer.pieces()) yield* parser.push(piece);
}

/**
 * Interrupts an execution as soon as `signal` says so. The answer is to be called when nothing is to be interrupted any more; it waits until
 * the server has heard of an interrupt that was begun.
 */
export function interruptOn(signal: AbortSignal | undefined, execution: Running): () => Promise<void> {
  let told: Promise<void> | undefined;
  const listener = () => {
    told = interrupt(execution);
  };
  signal?.addEventListener("abort", listener, { once: true });
  return async () => {
    signal?.removeEventListener("abort", listener);
    await told;
  };
}

/** Interrupts, if that can be done. The execution may not be there yet: its session may be just being made. */
export async function interrupt(execution: Running): Promise<void> {
  for (const pause of [0, 100, 400, 1000]) {
    await sleep(pause);
    try {
      return await execution.stop("interrupt", { limitMs: 5_000 });
    } catch (error) {
      // Whoever interrupts hears why it did, and not that this failed too.
      if (!(error instanceof NotFoundError)) return;
    }
  }
}
