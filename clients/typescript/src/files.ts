// Files of a session.

import type { Data } from "./bytes.js";
import { segment, type Call, type Http } from "./http.js";
import type { FileRecord, Files as Page } from "./wire.js";

/** A session's files. Relative paths are below `/mnt/data`; absolute ones reach what the session's own rights let it. */
export class Files {
  readonly #http: Http;
  readonly #session: string;

  /** @param session the session's path. */
  constructor(http: Http, session: string) {
    this.#http = http;
    this.#session = session;
  }

  /** All entries of a directory, sorted by path; `recursive`: also those of directories in it. */
  async list(path = "", options: { recursive?: boolean; signal?: AbortSignal } = {}): Promise<FileRecord[]> {
    const { recursive, signal } = options;
    const entries: FileRecord[] = [];
    let after: string | undefined;
    do {
      const query = { path: path || undefined, recursive, after };
      const page: Page = await this.#http.json({ method: "GET", path: `${this.#session}/files`, query, signal });
      entries.push(...page.value);
      after = page.next ?? undefined;
    } while (after !== undefined);
    return entries;
  }

  /** A file's bytes, as a whole in memory. */
  read(path: string, options: { signal?: AbortSignal } = {}): Promise<Uint8Array<ArrayBuffer>> {
    return this.#http.bytes({ method: "GET", ...this.#file(path), accept: "*/*", signal: options.signal });
  }

  /** Writes a file, whole or not at all, and makes the directories it is in. At most 128 MiB. */
  write(path: string, data: Data, options: { signal?: AbortSignal } = {}): Promise<FileRecord> {
    const body = typeof data === "string" ? new TextEncoder().encode(data) : data;
    return this.#http.json({ method: "PUT", ...this.#file(path), body, signal: options.signal });
  }

  /** Removes a file, or a directory with all in it. */
  remove(path: string, options: { signal?: AbortSignal } = {}): Promise<void> {
    return this.#http.send({ method: "DELETE", ...this.#file(path), signal: options.signal });
  }

  #file(path: string): Pick<Call, "path" | "query"> {
    if (path.startsWith("/")) return { path: `${this.#session}/files/-`, query: { absolute: path } };
    // The URL's own rules would turn `..` into another route before the server could refuse it; `segment` does not let it through.
    const names = path.split("/").filter((name) => name !== "" && name !== ".");
    if (names.length === 0) throw new TypeError(`${JSON.stringify(path)} names no file.`);
    return { path: `${this.#session}/files/${names.map(segment).join("/")}` };
  }
}
