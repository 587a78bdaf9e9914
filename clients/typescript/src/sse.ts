// Server-sent events, out of pieces of bytes that are cut anywhere.

/** One event as it was sent. */
export interface SentEvent {
  /** The event's own id; null if it has none. */
  id: string | null;
  name: string;
  data: string;
}

/** Takes pieces in and gives events out, as the HTML standard reads them. */
export class EventParser {
  readonly #decoder = new TextDecoder();
  /** The beginning of a line, in pieces: they are joined once, when it ends. */
  #rest: string[] = [];
  #skipsLineFeed = false;
  #id: string | null = null;
  #name = "";
  #data: string[] = [];

  /** The events that are whole now. */
  push(piece: Uint8Array): SentEvent[] {
    let text = this.#decoder.decode(piece, { stream: true });
    // A carriage return ends a line at once; a line feed right behind it belongs to it, also if it comes with the next piece.
    if (this.#skipsLineFeed && text !== "") {
      if (text.startsWith("\n")) text = text.slice(1);
      this.#skipsLineFeed = false;
    }
    if (text.endsWith("\r")) this.#skipsLineFeed = true;
    const lines = text.split(/\r\n|\r|\n/);
    this.#rest.push(lines[0] ?? "");
    if (lines.length === 1) return [];
    lines[0] = this.#rest.join("");
    this.#rest = [lines.pop() ?? ""];
    const events: SentEvent[] = [];
    for (const line of lines) {
      const event = this.#line(line);
      if (event) events.push(event);
    }
    return events;
  }

  #line(line: string): SentEvent | null {
    if (line === "") return this.#dispatch();
    const colon = line.indexOf(":");
    // What begins with a colon is a comment.
    if (colon === 0) return null;
    const field = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(line[colon + 1] === " " ? colon + 2 : colon + 1);
    if (field === "data") this.#data.push(value);
    else if (field === "event") this.#name = value;
    else if (field === "id" && !value.includes("\0")) this.#id = value;
    return null;
  }

  #dispatch(): SentEvent | null {
    const event = { id: this.#id, name: this.#name || "message", data: this.#data.join("\n") };
    const isWhole = this.#data.length > 0;
    this.#id = null;
    this.#name = "";
    this.#data = [];
    return isWhole ? event : null;
  }
}
