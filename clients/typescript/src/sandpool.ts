// The client: where the server is, and its pools.

import { uuid } from "./bytes.js";
import { Http, segment } from "./http.js";
import { Session, sessionPath } from "./session.js";
import type { Egress, OpenedSession, Opening, Pool, Pools, SessionSecret } from "./wire.js";

export interface SandpoolOptions {
  /** Where the server is, such as `http://127.0.0.1:7300` [default: SANDPOOL_ENDPOINT]. */
  endpoint?: string | undefined;
  /** A token or an API key, or what gives one for each request [default: SANDPOOL_TOKEN]. */
  token?: string | (() => string | Promise<string>) | undefined;
  /** Instead of the platform's. */
  fetch?: typeof globalThis.fetch | undefined;
  /** How long the server may leave a request without an answer [default: 90000]. Waiting for an execution's end is not counted. */
  timeoutMs?: number | undefined;
}

export interface SessionOptions {
  /** Its name: 4 to 128 characters [default: a new one]. A session that has the name is found. */
  id?: string | undefined;
  /** Variables for a session that is made. */
  env?: Record<string, string> | undefined;
  /** Secrets for a session that is made, which its hosts get and it does not. */
  secrets?: SessionSecret[] | undefined;
  /** What it may reach, of what its pool may. */
  egress?: Egress | undefined;
  /** `close` does not end it [default: false]. */
  keep?: boolean | undefined;
}

/** A server. */
export class Sandpool {
  readonly #http: Http;

  constructor(options: SandpoolOptions = {}) {
    const endpoint = options.endpoint ?? variable("SANDPOOL_ENDPOINT");
    if (!endpoint) throw new TypeError("Where is the server? Give `endpoint`, or set SANDPOOL_ENDPOINT.");
    const token = options.token ?? variable("SANDPOOL_TOKEN");
    if (!token) throw new TypeError("As whom? Give `token`, or set SANDPOOL_TOKEN; `sandpool token` prints one.");
    const { origin, pathname } = new URL(endpoint);
    const { fetch } = options;
    this.#http = new Http({
      base: origin + pathname.replace(/\/+$/, ""),
      token: typeof token === "string" ? () => token : token,
      // Not a method: browsers' own wants no other `this`.
      fetch: (input, init) => (fetch ?? globalThis.fetch)(input, init),
      timeoutMs: options.timeoutMs ?? 90_000,
    });
  }

  /** The pools that the token is good for. */
  async pools(): Promise<Pool[]> {
    return (await this.#http.json<Pools>({ method: "GET", path: "/pools" })).value;
  }

  /** One pool. */
  pool(name: string): Promise<Pool> {
    return this.#http.json({ method: "GET", path: `/pools/${segment(name)}` });
  }

  /** Finds a session or makes it. Without `keep`, `Session.close` ends it, also if it was there before. */
  async session(pool: string, options: SessionOptions = {}): Promise<Session> {
    const { id = `session-${uuid()}`, env, secrets, egress, keep = false } = options;
    const json: Opening = { ...(env && { env }), ...(secrets && { secrets }), ...(egress && { egress }) };
    const opened = await this.#http.json<OpenedSession>({ method: "PUT", path: sessionPath(pool, id), json });
    return new Session(this.#http, opened, keep);
  }
}

/** A variable of the environment, where there is one. */
function variable(name: string): string | undefined {
  const { process } = globalThis as { process?: { env?: Record<string, string | undefined> } };
  try {
    return process?.env?.[name];
  } catch {
    // Deno may not read it.
    return undefined;
  }
}
