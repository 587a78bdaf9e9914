// What can go wrong, as classes that a caller can act on.

/** What an error is made of, besides its message. */
export interface ErrorDetails {
  status: number;
  code: string;
  target?: string | null | undefined;
  retryAfterSeconds?: number | null | undefined;
  traceId?: string | null | undefined;
  cause?: unknown;
}

/** The server refused, or could not be asked. An exception in code that was run is no error: see `Execution.error`. */
export class SandpoolError extends Error {
  /** The HTTP status; 0 when there was no answer. */
  readonly status: number;
  /** The API's stable word for it. Without an answer it is `ConnectionFailed` or `NoAnswerInTime`. */
  readonly code: string;
  /** The field, parameter or header that is wrong. */
  readonly target: string | null;
  /** When the server says that it is worth asking again. */
  readonly retryAfterSeconds: number | null;
  /** What the server's operator finds it by. */
  readonly traceId: string | null;

  constructor(message: string, details: ErrorDetails) {
    super(message, "cause" in details ? { cause: details.cause } : undefined);
    this.name = new.target.name;
    this.status = details.status;
    this.code = details.code;
    this.target = details.target ?? null;
    this.retryAfterSeconds = details.retryAfterSeconds ?? null;
    this.traceId = details.traceId ?? null;
  }
}

/** 404: there is no such pool, session, execution or file; `code` says which of them. */
export class NotFoundError extends SandpoolError {}

/** 410: the session's sandbox died, and all in it. It is said once; the next call that may make a session makes a new one. */
export class SessionLostError extends SandpoolError {}

/** 429: the pool is full, a quota is used up, or too many executions wait; `code` says which of them. */
export class ExhaustedError extends SandpoolError {}

/** Puts an answer that is none of success into its class. */
export async function refusal(response: Response): Promise<SandpoolError> {
  const text = await response.text();
  const said = problem(text);
  const details: ErrorDetails = {
    status: response.status,
    code: said?.code ?? response.headers.get("x-ms-error-code") ?? `Http${response.status}`,
    target: said?.target,
    traceId: said?.traceId,
    retryAfterSeconds: retryAfter(response.headers),
  };
  const message = said?.message ?? `The server answered ${response.status} without saying why.`;
  switch (response.status) {
    case 404:
      return new NotFoundError(message, details);
    case 410:
      return new SessionLostError(message, details);
    case 429:
      return new ExhaustedError(message, details);
    default:
      return new SandpoolError(message, details);
  }
}

/** The header `Retry-After` in seconds, be it a number or a date. */
export function retryAfter(headers: Headers): number | null {
  const text = headers.get("retry-after")?.trim();
  if (!text) return null;
  if (/^\d+$/.test(text)) return Number(text);
  const date = Date.parse(text);
  return Number.isNaN(date) ? null : Math.max(0, (date - Date.now()) / 1000);
}

interface Said {
  code: string;
  message: string;
  target: string | null;
  traceId: string | null;
}

/** The refusal in a body; null for what is none of the API's, such as the page of a proxy in between. */
function problem(text: string): Said | null {
  try {
    const { error } = JSON.parse(text) as { error?: Partial<Said> };
    if (typeof error?.code !== "string" || typeof error.message !== "string") return null;
    return { code: error.code, message: error.message, target: error.target ?? null, traceId: error.traceId ?? null };
  } catch {
    return null;
  }
}
