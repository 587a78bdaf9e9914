// A server that answers what a test says, and remembers what it was asked.

import { once } from "node:events";
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";
import { Sandpool, type SandpoolOptions } from "../dist/index.js";

export interface Asked {
  method: string;
  url: string;
  headers: IncomingMessage["headers"];
  body: Buffer;
}

export type Answering = (asked: Asked, response: ServerResponse, count: number) => void | Promise<void>;

/** Starts it, lets `use` work with it, and stops it. Requests of one kind (`"PUT /pools/python/sessions/chat-17"`) are counted from 0. */
export async function serving(
  answers: Record<string, Answering>,
  use: (sandpool: Sandpool, asked: Asked[]) => Promise<void>,
  options: SandpoolOptions = {},
): Promise<void> {
  const all: Asked[] = [];
  const counts = new Map<string, number>();
  const server = createServer(async (request, response) => {
    const pieces: Buffer[] = [];
    try {
      for await (const piece of request) pieces.push(piece);
    } catch {
      return; // Whoever asked has gone away.
    }
    const asked = { method: request.method!, url: request.url!, headers: request.headers, body: Buffer.concat(pieces) };
    all.push(asked);
    const kind = `${asked.method} ${asked.url.split("?")[0]}`;
    const count = counts.get(kind) ?? 0;
    counts.set(kind, count + 1);
    const answer = answers[kind] ?? refuse(404, "NotFound");
    await answer(asked, response, count);
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address() as AddressInfo;
  try {
    await use(new Sandpool({ endpoint: `http://127.0.0.1:${port}/`, token: "secret", ...options }), all);
  } finally {
    server.closeAllConnections();
    server.close();
  }
}

export function say(value: unknown, status = 200): Answering {
  return (_, response) => {
    response.writeHead(status, { "Content-Type": "application/json" }).end(JSON.stringify(value));
  };
}

export function refuse(status: number, code: string, headers: Record<string, string> = {}): Answering {
  const message = `It is ${code}.`;
  const error = { code, message, target: "stdin", traceId: "00-1-2-01" };
  return (_, response) => {
    response.writeHead(status, { "x-ms-error-code": code, ...headers }).end(JSON.stringify({ error, code, message }));
  };
}

/** Answers one after another; the last one again and again. */
export function inTurn(...answers: Answering[]): Answering {
  return (asked, response, count) => answers[Math.min(count, answers.length - 1)]!(asked, response, count);
}

/** A stream of events that ends, or breaks, behind them. */
export function events(text: string, { breaks = false } = {}): Answering {
  return (_, response) => {
    response.writeHead(200, { "Content-Type": "text/event-stream" });
    response.write(text, () => (breaks ? response.destroy() : response.end()));
  };
}

/** A session that is there. */
export const SESSION = "/pools/python/sessions/chat-17";

export const opened = say({ pool: "python", identifier: "chat-17", isNew: true });

/** An execution's record. */
export function record(more: object = {}) {
  const truncated = { stdout: 0, stderr: 0 };
  const ended = { state: "ended", outcome: "succeeded", exitCode: null, detail: null, stateLost: false, truncated };
  const output = { stdout: "", stderr: "", result: null, displays: [], error: null };
  return { id: ID, pool: "python", session: "chat-17", ...ended, ...output, ...more };
}

export const ID = "0b6b2f0e-5a55-4a7e-9b8a-0e4f6f1a2c33";
