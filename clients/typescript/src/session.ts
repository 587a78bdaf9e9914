/// <reference lib="esnext.disposable" preserve="true" />
// One session: what runs in it, and its files.

import { toBase64, uuid } from "./bytes.js";
import { NotFoundError, SessionLostError } from "./errors.js";
import { Execution, ExecutionStream, interrupt, interruptOn, Running, whenEnded, type How } from "./execution.js";
import { Files } from "./files.js";
import { Breaks, segment, type Http } from "./http.js";
import type {
  ExecutionOutline,
  ExecutionRecord,
  ExecutionRequest,
  Executions,
  OpenedSession,
  SessionDetail,
  Terminal,
} from "./wire.js";

/**
 * How long the request that starts an execution waits for its end. What is short needs no other request. What takes longer is known to the
 * server's own records from then on, and outlives its restart.
 */
const FIRST_WAIT_SECONDS = 1;

/** Takes output as it comes; the next piece waits until it is done. */
export type OnText = (text: string) => void | Promise<void>;

/** What executions of all kinds may be told. */
export interface Limits {
  /** A UUID of your own. An execution that has it already is found, and nothing is started. */
  id?: string | undefined;
  /** Wall-clock limit; by default and at most the pool's. What is over it ends with the outcome `timedOut`. */
  timeoutSeconds?: number | undefined;
  /** Bytes of output to keep; by default and at most the pool's. */
  outputLimitBytes?: number | undefined;
  /** Interrupts the execution; the call throws the signal's reason then. */
  signal?: AbortSignal | undefined;
}

export interface RunOptions extends Limits {
  /** In an empty namespace that is thrown away afterwards. */
  fresh?: boolean | undefined;
  onStdout?: OnText | undefined;
  onStderr?: OnText | undefined;
}

export interface CommandOptions extends Limits {
  /** All of its input. Without it the input is empty. */
  stdin?: string | Uint8Array | undefined;
  onStdout?: OnText | undefined;
  onStderr?: OnText | undefined;
}

interface WithInput {
  /** All of the input; or true for what `input` and `endInput` bring. */
  stdin?: string | Uint8Array | true | undefined;
  /** On a terminal of its own; its output comes as stdout. */
  terminal?: Terminal | undefined;
}

/** What `stream` and `start` run: code, a command line for bash, or a program with its arguments. */
export type Work = Limits &
  ({ code: string; fresh?: boolean | undefined } | ({ command: string } & WithInput) | ({ argv: string[] } & WithInput));

/** A session. It is ended by `close`, and so at the end of the block of an `await using`, unless it is to be kept. */
export class Session implements AsyncDisposable {
  readonly pool: string;
  readonly id: string;
  /** It was made when it was opened here; else it was there. */
  readonly isNew: boolean;
  /** `close` leaves it as it is: it ends when nobody has used it for the pool's cool-down. */
  readonly keep: boolean;
  readonly files: Files;
  readonly #http: Http;
  readonly #path: string;
  readonly #executions: string;

  constructor(http: Http, opened: OpenedSession, keep: boolean) {
    this.pool = opened.pool;
    this.id = opened.identifier;
    this.isNew = opened.isNew;
    this.keep = keep;
    this.#http = http;
    this.#path = sessionPath(this.pool, this.id);
    this.#executions = `${this.#path}/executions`;
    this.files = new Files(http, this.#path);
  }

  /** Runs code in the session's interpreter, and waits for its end. An exception in it is no error of this call: see `Execution.error`. */
  run(code: string, options: RunOptions = {}): Promise<Execution> {
    return this.#run({ code, ...options }, options);
  }

  /** Runs a command line of bash, or a program and its arguments, in `/mnt/data`, and waits for its end. */
  command(command: string | string[], options: CommandOptions = {}): Promise<Execution> {
    const work = typeof command === "string" ? { command } : { argv: command };
    return this.#run({ ...work, ...options }, options);
  }

  /** Starts something and does not wait. Its signal ends the call only. */
  async start(work: Work): Promise<Execution> {
    const json = { ...request(work), waitSeconds: 0 };
    const record = await this.#http.json<ExecutionRecord>({
      method: "POST",
      path: this.#executions,
      json,
      signal: work.signal,
    });
    return this.#execution(record);
  }

  /** Runs something and gives its events as they happen. It is started when the first one is asked for. */
  stream(work: Work): ExecutionStream {
    const body = request(work);
    return new ExecutionStream(this.#http, this.#executions, body.id, { request: body, signal: work.signal });
  }

  /** The events of an execution that is there, from its beginning or after an event. Aborting ends the reading, not the execution. */
  follow(id: string, options: { after?: number | undefined; signal?: AbortSignal | undefined } = {}): ExecutionStream {
    return new ExecutionStream(this.#http, this.#executions, id, options);
  }

  /** The executions that are still known, oldest first, without their output. */
  async executions(): Promise<ExecutionOutline[]> {
    const { value } = await this.#http.json<Executions>({ method: "GET", path: this.#executions });
    return value;
  }

  /** One execution, as it is now. */
  async execution(id: string): Promise<Execution> {
    const path = `${this.#executions}/${segment(id)}`;
    return this.#execution(await this.#http.json<ExecutionRecord>({ method: "GET", path }));
  }

  /** Ends an execution. What has ended already stays as it is. */
  stop(id: string, how: How = "interrupt"): Promise<void> {
    return new Running(this.#http, this.#executions, id).stop(how);
  }

  /** Sends input to an execution that was started with `stdin: true` or a terminal. */
  input(id: string, data: string | Uint8Array): Promise<void> {
    return new Running(this.#http, this.#executions, id).input(data);
  }

  /** Ends an execution's input. */
  endInput(id: string): Promise<void> {
    return new Running(this.#http, this.#executions, id).endInput();
  }

  /** The session as the server sees it, and what it uses. */
  info(): Promise<SessionDetail> {
    return this.#http.json({ method: "GET", path: this.#path });
  }

  /** Ends the session and all in it, also one that is to be kept. One that has ended already is no error. */
  async end(): Promise<void> {
    try {
      await this.#http.send({ method: "DELETE", path: this.#path });
    } catch (error) {
      if (!(error instanceof NotFoundError || error instanceof SessionLostError)) throw error;
    }
  }

  /** Ends the session, unless it is to be kept. */
  async close(): Promise<void> {
    if (!this.keep) await this.end();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  async #run(work: Work, { onStdout, onStderr }: { onStdout?: OnText | undefined; onStderr?: OnText | undefined }): Promise<Execution> {
    work.signal?.throwIfAborted();
    if (!onStdout && !onStderr) return this.#waited(work);
    const stream = this.stream(work);
    for await (const event of stream) {
      try {
        if (event.type === "stdout") await onStdout?.(event.text);
        if (event.type === "stderr") await onStderr?.(event.text);
      } catch (error) {
        // Nobody else knows of the execution.
        await interrupt(stream);
        throw error;
      }
    }
    return this.execution(stream.id);
  }

  async #waited(work: Work): Promise<Execution> {
    const { signal } = work;
    const json = { ...request(work), waitSeconds: FIRST_WAIT_SECONDS };
    const settle = interruptOn(signal, new Running(this.#http, this.#executions, json.id));
    try {
      return await this.#execution(await this.#begun(json, signal)).wait({ signal });
    } finally {
      await settle();
    }
  }

  async #begun(json: ExecutionRequest & { id: string }, signal: AbortSignal | undefined): Promise<ExecutionRecord> {
    const breaks = new Breaks();
    try {
      return await this.#http.json({ method: "POST", path: this.#executions, json, waitMs: FIRST_WAIT_SECONDS * 1000, signal });
    } catch (failure) {
      await breaks.next(failure, signal);
      // It may have been started all the same. Asking for it tells, and starts nothing.
      try {
        return await whenEnded(this.#http, `${this.#executions}/${segment(json.id)}`, signal, breaks);
      } catch (error) {
        throw error instanceof NotFoundError ? failure : error;
      }
    }
  }

  #execution(record: ExecutionRecord): Execution {
    return new Execution(this.#http, this.#executions, record);
  }
}

/** Where a session is. */
export function sessionPath(pool: string, id: string): string {
  return `/pools/${segment(pool)}/sessions/${segment(id)}`;
}

/** The body of a request. It has an id in any case, so that a request that is sent again starts nothing twice. */
function request(work: Work): ExecutionRequest & { id: string } {
  const { id = uuid(), timeoutSeconds, outputLimitBytes } = work;
  // Keys that are null count as not given.
  const common = { id, timeoutSeconds: timeoutSeconds ?? null, outputLimitBytes: outputLimitBytes ?? null };
  if ("code" in work) return { code: work.code, fresh: work.fresh ?? null, ...common };
  const stdin = work.stdin instanceof Uint8Array ? { base64: toBase64(work.stdin) } : (work.stdin ?? null);
  const what = "command" in work ? { command: work.command } : { argv: work.argv };
  return { ...what, stdin, terminal: work.terminal ?? null, ...common };
}
