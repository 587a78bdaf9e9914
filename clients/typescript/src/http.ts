// Requests: the token, limits of time, what is asked again, and how failures are told. It knows nothing of sessions.

import { refusal, SandpoolError } from "./errors.js";

/** How often a refused request is sent again. */
const RETRIES = 3;

/** The longest `Retry-After` that is waited for; callers decide about longer ones. */
const LONGEST_PAUSE_SECONDS = 30;

/** The server says something every ten seconds in a stream; three times that is too long. */
const STREAM_SILENCE_MS = 30_000;

/** Uploads may be as slow as this. */
const UPLOAD_BYTES_PER_MS = 64;

/** One request. */
export interface Call {
  method: "GET" | "PUT" | "POST" | "DELETE";
  /** Below the endpoint, percent-encoded. */
  path: string;
  query?: Record<string, string | number | boolean | undefined>;
  json?: unknown;
  body?: Uint8Array | ArrayBuffer | Blob;
  accept?: string;
  signal?: AbortSignal | undefined;
  /** What the answer may take longer than others, because it waits for something. */
  waitMs?: number;
  /** Instead of the client's own limit. */
  limitMs?: number;
  /** Whether it may be sent again after a refusal [default: true]. */
  isRepeatable?: boolean;
}

/** Where requests go, and as whom. */
export interface HttpOptions {
  /** Without a slash at its end. */
  base: string;
  token: () => string | Promise<string>;
  fetch: typeof globalThis.fetch;
  timeoutMs: number;
}

export class Http {
  readonly #options: HttpOptions;

  constructor(options: HttpOptions) {
    this.#options = options;
  }

  /** Asks, and reads the answer as JSON. */
  async json<T>(call: Call): Promise<T> {
    const answer = await this.open(call);
    const text = await answer.read((response) => response.text());
    try {
      return JSON.parse(text) as T;
    } catch (cause) {
      const message = `${call.method} ${call.path} was answered by something that is no JSON.`;
      throw new SandpoolError(message, { status: answer.response.status, code: "StrangeAnswer", cause });
    }
  }

  /** Asks, and wants no more than success. */
  async send(call: Call): Promise<void> {
    const answer = await this.open(call);
    await answer.read((response) => response.arrayBuffer());
  }

  /** Asks, and takes bytes for as long as they come. */
  async bytes(call: Call): Promise<Uint8Array<ArrayBuffer>> {
    const answer = await this.open(call);
    const pieces: Uint8Array[] = [];
    let sum = 0;
    for await (const piece of answer.pieces(this.#options.timeoutMs)) {
      pieces.push(piece);
      sum += piece.length;
    }
    const whole = new Uint8Array(sum);
    let at = 0;
    for (const piece of pieces) {
      whole.set(piece, at);
      at += piece.length;
    }
    return whole;
  }

  /** Asks until there is a success. A refusal with `Retry-After` is asked again, a few times. */
  async open(call: Call): Promise<Answer> {
    for (let again = 0; ; again += 1) {
      const answer = await this.#once(call);
      if (answer.response.ok) return answer;
      const error = await answer.read(refusal);
      const pause = error.retryAfterSeconds;
      const passes = error.status === 429 || error.status === 503;
      const isRepeatable = call.isRepeatable ?? true;
      if (!isRepeatable || !passes || pause === null || pause > LONGEST_PAUSE_SECONDS || again === RETRIES) throw error;
      await sleep(pause * 1000, call.signal);
    }
  }

  async #once(call: Call): Promise<Answer> {
    const { base, fetch, timeoutMs } = this.#options;
    call.signal?.throwIfAborted();
    const token = await this.#options.token();
    const upload = call.body instanceof Blob ? call.body.size : (call.body?.byteLength ?? 0);
    const watch = new Watch(base, call.signal);
    watch.start((call.limitMs ?? timeoutMs) + (call.waitMs ?? 0) + upload / UPLOAD_BYTES_PER_MS);
    try {
      const headers: Record<string, string> = {
        Authorization: `Bearer ${token}`,
        Accept: call.accept ?? "application/json",
      };
      const init: RequestInit = { method: call.method, headers, signal: watch.signal };
      if (call.json !== undefined) {
        headers["Content-Type"] = "application/json";
        init.body = JSON.stringify(call.json);
      } else if (call.body !== undefined) {
        headers["Content-Type"] = "application/octet-stream";
        init.body = call.body as BodyInit;
      }
      return new Answer(await fetch(base + call.path + query(call.query), init), watch);
    } catch (error) {
      watch.end();
      throw watch.explain(error);
    }
  }
}

/** An answer whose body is still to come. Exactly one of `read` and `pieces` is used, and ends it. */
export class Answer {
  readonly response: Response;
  readonly #watch: Watch;

  constructor(response: Response, watch: Watch) {
    this.response = response;
    this.#watch = watch;
  }

  /** Reads the body as a whole, within what is left of the request's time. */
  async read<T>(take: (response: Response) => Promise<T>): Promise<T> {
    try {
      return await take(this.response);
    } catch (error) {
      throw this.#watch.explain(error);
    } finally {
      this.#watch.end();
    }
  }

  /** The body in pieces; no piece may take longer than `silenceMs`. Whoever stops to read ends the connection. */
  async *pieces(silenceMs = STREAM_SILENCE_MS): AsyncGenerator<Uint8Array, void, undefined> {
    const reader = this.response.body?.getReader();
    try {
      while (reader) {
        this.#watch.start(silenceMs);
        const { done, value } = await reader.read();
        // The reader of ours may take as long as it likes.
        this.#watch.pause();
        if (done) return;
        yield value;
      }
    } catch (error) {
      throw this.#watch.explain(error);
    } finally {
      this.#watch.end();
      reader?.cancel().catch(() => {});
    }
  }
}

/** What may end a request before its time: the caller's signal, or silence. */
class Watch {
  readonly #controller = new AbortController();
  readonly #base: string;
  readonly #caller: AbortSignal | undefined;
  readonly #listener = () => this.#controller.abort(this.#caller?.reason);
  #timer: ReturnType<typeof setTimeout> | undefined;
  #limitMs = 0;
  #wasSilent = false;

  constructor(base: string, caller: AbortSignal | undefined) {
    this.#base = base;
    this.#caller = caller;
    caller?.addEventListener("abort", this.#listener, { once: true });
  }

  get signal(): AbortSignal {
    return this.#controller.signal;
  }

  /** From now on, `limitMs` may pass. */
  start(limitMs: number): void {
    this.pause();
    this.#limitMs = limitMs;
    this.#timer = setTimeout(() => {
      this.#wasSilent = true;
      this.#controller.abort();
    }, limitMs);
  }

  pause(): void {
    clearTimeout(this.#timer);
  }

  end(): void {
    this.pause();
    this.#caller?.removeEventListener("abort", this.#listener);
  }

  /** What a failure means to the caller. */
  explain(error: unknown): unknown {
    if (this.#caller?.aborted) return this.#caller.reason;
    if (this.#wasSilent) {
      const message = `${this.#base} did not answer within ${Math.round(this.#limitMs)} ms.`;
      return new SandpoolError(message, { status: 0, code: "NoAnswerInTime", cause: error });
    }
    if (error instanceof SandpoolError) return error;
    // What `fetch` throws says little; its cause says what happened.
    const inner = error instanceof Error && error.cause instanceof Error ? error.cause : error;
    const why = inner instanceof Error ? inner.message || inner.name : String(inner);
    const message = `The connection to ${this.#base} failed: ${why}`;
    return new SandpoolError(message, { status: 0, code: "ConnectionFailed", cause: error });
  }
}

/** How often something is asked for again without any progress, while the connection fails. */
const BREAKS = 6;

/** How many of these may be answers that it is not there. */
const MISSES = 3;

/** Connections that broke one after another: 0.1 s to 3.2 s apart, 6.3 s in all, which is longer than a server's restart. */
export class Breaks {
  #count = 0;
  #misses = 0;

  reset(): void {
    this.#count = 0;
    this.#misses = 0;
  }

  /** Waits until it is worth trying again; throws the failure if it is not. */
  async next(failure: unknown, signal: AbortSignal | undefined): Promise<void> {
    if (!this.#passes(failure) || this.#count === BREAKS) throw failure;
    await sleep(100 * 2 ** this.#count, signal);
    this.#count += 1;
  }

  #passes(failure: unknown): boolean {
    if (!(failure instanceof SandpoolError)) return false;
    if (failure.status === 0 || failure.status >= 500) return true;
    // A server that has just started again may not know its sessions for a moment.
    if (failure.status !== 404 || this.#count === 0 || this.#misses === MISSES) return false;
    this.#misses += 1;
    return true;
  }
}

/** Waits, and not any longer than the signal lets it. */
export function sleep(ms: number, signal?: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    const stopped = () => {
      clearTimeout(timer);
      reject(signal?.reason);
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", stopped);
      resolve();
    }, ms);
    if (signal?.aborted) stopped();
    else signal?.addEventListener("abort", stopped, { once: true });
  });
}

/** A name as one segment of a path. The names `.` and `..` would mean other paths. */
export function segment(name: string): string {
  if (name === "" || name === "." || name === "..") throw new TypeError(`${JSON.stringify(name)} is no name.`);
  return encodeURIComponent(name);
}

function query(parameters: Call["query"]): string {
  const given = Object.entries(parameters ?? {}).filter(([, value]) => value !== undefined);
  const text = new URLSearchParams(given.map(([name, value]) => [name, String(value)])).toString();
  return text && `?${text}`;
}
