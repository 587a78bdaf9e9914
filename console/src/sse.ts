// Server-sent events, read from an answer's body: an EventSource sends no token.

export interface ServerEvent {
  event: string;
  data: string;
  id: string | null;
}

/** Takes text as it comes, and gives the events that are whole. */
export class Events {
  #rest = "";
  #event = "";
  #data: string[] = [];
  #id: string | null = null;

  push(text: string): ServerEvent[] {
    const found: ServerEvent[] = [];
    const lines = (this.#rest + text).split(/\r\n|\n/);
    this.#rest = lines.pop() ?? "";
    for (const line of lines) {
      if (line === "") {
        if (this.#data.length > 0) found.push({ event: this.#event || "message", data: this.#data.join("\n"), id: this.#id });
        [this.#event, this.#data] = ["", []];
        continue;
      }
      const at = line.indexOf(":");
      if (at === 0) continue;
      const [name, raw] = at < 0 ? [line, ""] : [line.slice(0, at), line.slice(at + 1)];
      const value = raw.startsWith(" ") ? raw.slice(1) : raw;
      if (name === "event") this.#event = value;
      else if (name === "data") this.#data.push(value);
      else if (name === "id") this.#id = value;
    }
    return found;
  }
}

/** The events of a body, until it ends. */
export async function* events(body: ReadableStream<Uint8Array>): AsyncGenerator<ServerEvent> {
  const parser = new Events();
  const decoder = new TextDecoder();
  const reader = body.getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      yield* parser.push(decoder.decode(value, { stream: true }));
    }
  } finally {
    reader.cancel().catch(() => undefined);
  }
}
