// The public API, with the token of who looks, and what is known of the way to it.

import type { components } from "../build/api.d.ts";
import { Value } from "./store";

export type Schema<Name extends keyof components["schemas"]> = components["schemas"][Name];

const KEY = "sandpool.token";

function kept(): string | null {
  try {
    return sessionStorage.getItem(KEY);
  } catch {
    return null;
  }
}

/** The token: kept for this tab alone, until it is closed. */
export const token = new Value<string | null>(kept());

/** Why there is no token any more. */
export const signedOut = new Value<string | null>(null);

export function signIn(value: string): void {
  try {
    sessionStorage.setItem(KEY, value);
  } catch {
    // Then it is kept in memory.
  }
  signedOut.set(null);
  token.set(value);
}

export function signOut(why: string | null = null): void {
  try {
    sessionStorage.removeItem(KEY);
  } catch {
    // It was in memory.
  }
  signedOut.set(why);
  token.set(null);
}

/** The way to the server: since when it does not answer, and when it last did. */
export interface Link {
  awaySince: number | null;
  lastAnswer: number | null;
  why: string;
}

export const link = new Value<Link>({ awaySince: null, lastAnswer: null, why: "" });

/** Counts the times that the server came back: what was read before is read again. */
export const returns = new Value(0);

function answered(): void {
  const wasAway = link.get().awaySince !== null;
  link.set({ awaySince: null, lastAnswer: Date.now(), why: "" });
  if (wasAway) returns.set(returns.get() + 1);
}

/** It does not answer. Asked again and again, until it does. */
export function lostIt(why: string): void {
  const before = link.get();
  if (before.awaySince !== null) return;
  link.set({ ...before, awaySince: Date.now(), why });
  let wait = 500;
  const knock = async () => {
    try {
      const answer = await fetch("/healthz", { cache: "no-store", signal: AbortSignal.timeout(4000) });
      if (answer.ok) return answered();
    } catch {
      // Not yet.
    }
    wait = Math.min(wait * 1.5, 5000);
    setTimeout(knock, wait);
  };
  setTimeout(knock, wait);
}

/** A refusal, in the server's words. */
export class Refusal extends Error {
  constructor(
    readonly status: number,
    readonly code: string,
    message: string,
    readonly target: string | null,
  ) {
    super(message);
  }
}

/** The server did not answer at all. */
export class Away extends Error {}

export interface Asking {
  method?: string;
  body?: BodyInit | null;
  json?: unknown;
  headers?: Record<string, string>;
  signal?: AbortSignal | undefined;
  /** How long an answer may take, in milliseconds: then the server counts as away. As long as it likes, if not given. */
  patience?: number;
}

/** For questions that the server answers at once. */
const PATIENCE = 6000;

/** One request. A refusal is thrown with what the server said. */
export async function ask(path: string, asking: Asking = {}): Promise<Response> {
  const headers = new Headers(asking.headers);
  const own = token.get();
  if (own) headers.set("Authorization", `Bearer ${own}`);
  let body = asking.body ?? null;
  if (asking.json !== undefined) {
    headers.set("Content-Type", "application/json");
    body = JSON.stringify(asking.json);
  }
  const signals = [asking.signal, asking.patience ? AbortSignal.timeout(asking.patience) : undefined].filter((one) => one !== undefined);
  let answer: Response;
  try {
    answer = await fetch(path, { method: asking.method ?? "GET", headers, body, cache: "no-store", signal: AbortSignal.any(signals) });
  } catch (error) {
    if (asking.signal?.aborted) throw error;
    lostIt("It cannot be reached.");
    throw new Away("The server does not answer.");
  }
  answered();
  if (answer.ok) return answer;
  const refusal = await refused(answer);
  if (refusal.status === 401 && own && own === token.get()) signOut(refusal.message);
  throw refusal;
}

async function refused(answer: Response): Promise<Refusal> {
  try {
    const problem = (await answer.json()) as Schema<"Problem">;
    return new Refusal(answer.status, problem.error.code, problem.error.message, problem.error.target ?? null);
  } catch {
    return new Refusal(answer.status, "Unknown", `The server answered ${answer.status} ${answer.statusText}.`, null);
  }
}

export async function get<T>(path: string, signal?: AbortSignal): Promise<T> {
  return (await ask(path, { signal, patience: PATIENCE })).json() as Promise<T>;
}

/** One session's place. */
export interface Place {
  pool: string;
  session: string;
  /** Of an operator: in whose room it is. */
  tenant: string | null;
}

/** The path of a session, and what is behind it. */
export function sessionPath(place: Place, rest = "", query: Record<string, string> = {}): string {
  const parameters = new URLSearchParams(place.tenant ? { ...query, tenant: place.tenant } : query).toString();
  const path = `/pools/${encodeURIComponent(place.pool)}/sessions/${encodeURIComponent(place.session)}${rest}`;
  return parameters ? `${path}?${parameters}` : path;
}

/** A file's path, segment by segment. */
export function filePath(place: Place, path: string): string {
  return sessionPath(place, `/files/${path.split("/").map(encodeURIComponent).join("/")}`);
}

/** All sessions of a pool, page by page. */
export async function sessionsOf(pool: string, signal?: AbortSignal): Promise<Schema<"ListedSession">[]> {
  const all: Schema<"ListedSession">[] = [];
  let after = "";
  for (;;) {
    const page = await get<Schema<"Sessions">>(`/pools/${encodeURIComponent(pool)}/sessions?usage=true${after}`, signal);
    all.push(...page.value);
    if (!page.next) return all;
    after = `&after=${encodeURIComponent(page.next)}`;
  }
}

/** What a token of ours says of itself. It is shown, and nothing more: the server is who checks it. */
export function claims(value: string): { subject: string; role: string; tenant: string; ends: number | null } | null {
  const parts = value.split(".");
  if (parts.length !== 3) return null;
  try {
    const bytes = Uint8Array.from(atob(parts[1]!.replaceAll("-", "+").replaceAll("_", "/")), (sign) => sign.charCodeAt(0));
    const said = JSON.parse(new TextDecoder().decode(bytes)) as Record<string, unknown>;
    const name = said["preferred_username"] ?? said["email"] ?? said["name"] ?? said["sub"];
    return {
      subject: String(name ?? ""),
      role: [said["roles"] ?? []].flat().join(", "),
      tenant: typeof said["tenant"] === "string" ? said["tenant"] : "default",
      ends: typeof said["exp"] === "number" ? said["exp"] * 1000 : null,
    };
  } catch {
    return null;
  }
}
