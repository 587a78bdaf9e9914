// The client library of Sandpool.
//
//   sandpool   the server, its pools
//   session    what runs in a session          execution  records, and streams of events
//   files      a session's files               errors     what can go wrong
//   http       requests, limits, repetition    sse        server-sent events out of bytes
//   wire       the API's JSON, as types        events     the events of an execution, as types

export type { Data } from "./bytes.js";
export { ExhaustedError, NotFoundError, SandpoolError, SessionLostError, type ErrorDetails } from "./errors.js";
export type { Ending, ExecutionEvent } from "./events.js";
export { Execution, ExecutionStream, formBytes, type How } from "./execution.js";
export type { Files } from "./files.js";
export { Sandpool, type SandpoolOptions, type SessionOptions } from "./sandpool.js";
export { Session, type CommandOptions, type Limits, type OnText, type RunOptions, type Work } from "./session.js";
export type {
  Egress,
  ExecutionOutline,
  ExecutionRecord,
  FileRecord,
  OpenedSession,
  Pool,
  Raised,
  Resumed,
  SessionDetail,
  SessionRecord,
  SessionSecret,
  Shown,
  Size,
  Suspended,
  Terminal,
  Usage,
} from "./wire.js";
