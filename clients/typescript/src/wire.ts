// What crosses the wire: the native API's JSON, as docs/openapi.json describes it. Written by hand, and held against that document by
// test/wire.test.ts, key by key. `Execution`, `File` and `Session` have `Record` behind their name here, because the library or the platform has
// classes of these names.

/** A pool. */
export interface Pool {
  name: string;
  /** What answers code. */
  runtime: { name?: string; version?: string } | null;
  containerType: "PythonLTS" | "NodeLTS" | "Shell" | "CustomContainer" | null;
  /** Where it comes from. */
  origin: "file" | "default" | "applied" | null;
  /** Counts its changes. */
  generation: number | null;
  /** How interpreters start. */
  interpreterStart: "zygote" | "cold";
  /** When its image was built. */
  imageCreatedAt: string | null;
  /** It has as many ready sandboxes as it was asked to keep. */
  isReady: boolean;
  /** Why sandboxes do not start, when they do not. */
  trouble: string | null;
  /** Sandboxes that are ready for a session. */
  ready: number;
  /** Sandboxes to keep ready, at least. */
  readyWanted: number;
  /** Sandboxes that should be ready now: as many as the rate of new sessions asks for. */
  readyTarget: number;
  /** Sandboxes to keep ready when new sessions come fast, at most. */
  maxReady: number;
  /** Sandboxes that are being made. */
  booting: number;
  /** Sessions there are: one's own, or for an operator all. */
  sessions: number;
  /** Sessions at the same time, at most. */
  maxSessions: number;
  /** New sessions that found nothing ready and waited, since the server's start. */
  waited: number;
  /** How long a caller waits for a place when every one is taken. */
  waitWhenFullSeconds: number;
  /** Who shares a session's name: the callers of one tenant, or all. */
  sessionScope: "tenant" | "pool";
  /** Without use, a session ends after this long. */
  cooldownSeconds: number;
  /** A session ends after this long in any case. */
  maxAliveSeconds: number | null;
  /** The longest time-out of an execution. */
  maxTimeoutSeconds: number;
  /** Bytes of output that one execution keeps. */
  outputLimitBytes: number;
  /** Executions that may wait in one session. */
  queue: number;
  /** The isolation level in force. */
  level: string;
  /** What the wall is made of on this host. */
  wall: string[];
  /** What is weaker on this host than the level promises elsewhere. */
  weaker: string[];
  /** What each sandbox may use. */
  limits: {
    /** Thousandths of a processor. */
    cpuMilli: number;
    /** Bytes of memory, files included. */
    memoryBytes: number;
    /** Bytes on `/mnt/data`. */
    dataBytes: number;
    /** Bytes on `/tmp`. */
    tmpBytes: number;
    /** Processes and threads. */
    pids: number;
  };
}

/** The pools. */
export interface Pools {
  value: Pool[];
}

/** How a session begins. */
export interface Opening {
  /** What it may reach, of what its pool may. */
  egress?: Egress | null;
  /** Environment variables of a session that is made; one that is there has its own, and the call is refused. */
  env?: Record<string, string>;
  /** Secrets of a session that is made, where its pool says `sessionSecrets`. */
  secrets?: SessionSecret[];
}

/** What may be reached. */
export interface Egress {
  /** Nothing (by default), what `allow` names, or all that is public. */
  mode?: "none" | "allow-list" | "open";
  /** Hosts that are reached, in the mode `allow-list`. */
  allow?: string[];
  /** Hosts that are not, whatever else is said. */
  deny?: string[];
  /** Ranges of addresses that are not public and are reached all the same. */
  allowAddresses?: string[];
  /** Addresses of names that are asked of nobody. */
  hosts?: Record<string, string[]>;
}

/** A secret that the session uses and does not have. */
export interface SessionSecret {
  /** The variable that the session has; its value there is a placeholder. */
  name: string;
  /** What its hosts get: 8 to 8192 printable ASCII characters. No answer, log or record has it. */
  value: string;
  /** Who gets the value: `example.com`, `*.example.com`, each with `:PORT` if it is not 443. */
  hosts: string[];
}

/** A session. */
export interface SessionRecord {
  /** Its name. */
  identifier: string;
  pool: string;
  /** The sandbox bound to it. */
  sandbox: string;
  /** The subject of the token that made it. */
  owner: string;
  /** Against whose quota it counts. */
  tenant: string;
  /** The isolation level it really has. */
  level: string;
  /** Executions that run or wait, and files that are being moved. */
  busy: number;
  createdAt: string;
  lastUsedAt: string;
  /** When it ends, if it is not used again. */
  expiresAt: string;
  /** Whether it has a sandbox. The next use of one that is suspended brings it back. */
  state: "live" | "suspended";
  suspended?: Suspended;
}

/** How a session is suspended. */
export interface Suspended {
  /** Since when. */
  since: string;
  /** Bytes of it on the host's disk. */
  bytes: number;
  /** What is kept: the files of `/mnt/data` and of the home directory, or all of its machine. */
  keeps: "files" | "machine";
}

/** What a session that was brought back has of what had been there. */
export interface Resumed {
  keeps: "files" | "machine";
  /** What it has not: none for a machine. */
  lost: string[];
}

/** A session that was found or made. */
export interface OpenedSession extends SessionRecord {
  /** This call made it. */
  isNew: boolean;
  /** How long it took to get it. */
  openMilliseconds: number;
  /** This call brought it back from being suspended. */
  resumed: Resumed | null;
}

/** What a session's sandbox uses. */
export interface Usage {
  /** Processor time. */
  cpuSeconds: number;
  /** Bytes of memory. */
  memoryBytes: number;
  /** Bytes of memory at most so far. */
  memoryPeakBytes: number;
  /** Processes that were killed for want of memory. */
  oomKills: number;
  /** Processes and threads. */
  pids: number;
  /** Bytes of its files. */
  storedBytes: number;
  /** Bytes that came into it. */
  receivedBytes: number;
  /** Bytes that went out of it. */
  sentBytes: number;
}

/** A session, and what it uses. */
export interface SessionDetail extends SessionRecord {
  /** Null while it is suspended. */
  usage: Usage | null;
  /** What its wall is made of. */
  wall: string[];
  /** What is weaker on this host than the level promises elsewhere. */
  weaker: string[];
}

/** What to run: exactly one of `code`, `command` and `argv`. */
export interface ExecutionRequest {
  /** Source text for the pool's interpreter, at most 3 MiB. */
  code?: string | null;
  /** A command line for `/bin/bash -lc` in `/mnt/data`, at most 3 MiB. */
  command?: string | null;
  /** A program and its arguments. */
  argv?: string[] | null;
  /** Your own id, a UUID: the same again finds the execution that has it. */
  id?: string | null;
  /** For `code`: in an empty namespace that is thrown away afterwards. */
  fresh?: boolean | null;
  /** For `command` and `argv`: true for what is sent as input later, a text, or bytes in base64. */
  stdin?: boolean | string | { base64: string } | null;
  /** For `command` and `argv`: on a terminal of its own. */
  terminal?: Terminal | null;
  /** Wall-clock limit; by default and at most the pool's. */
  timeoutSeconds?: number | null;
  /** Bytes of output to keep; by default and at most the pool's. */
  outputLimitBytes?: number | null;
  /** How long the answer waits for the end: 0 to 600, by default 60. */
  waitSeconds?: number | null;
}

/** A terminal. */
export interface Terminal {
  rows: number;
  columns: number;
  /** The value of TERM. */
  term?: string;
}

/** A terminal's size. */
export interface Size {
  rows: number;
  columns: number;
}

/** How hard an execution is stopped. */
export interface Stop {
  how?: "interrupt" | "kill" | null;
}

/** An execution without its output. */
export interface ExecutionOutline {
  id: string;
  pool: string;
  session: string;
  state: "queued" | "running" | "ended";
  /** How it ended; null until it has. */
  outcome: "succeeded" | "raised" | "exited" | "notStarted" | "timedOut" | "cancelled" | "died" | null;
  /** Of a command: its exit code, or 128 + the signal that ended it. */
  exitCode: number | null;
  /** Why it was not started, or how it died. */
  detail: string | null;
  /** When it was asked for. */
  createdAt: string;
  /** How long it waited for its turn. */
  queuedMilliseconds: number | null;
  /** Wall-clock time inside the sandbox. */
  durationMilliseconds: number | null;
  /** The interpreter was replaced: the session's variables are gone. */
  stateLost: boolean;
  /** Bytes that were dropped over the limit. */
  truncated: { stdout: number; stderr: number };
}

/** An execution, as it is now. */
export interface ExecutionRecord extends ExecutionOutline {
  /** It is the first since its session was brought back from being suspended. */
  resumed?: Resumed;
  /** Standard output so far; not with `bytes=base64`. */
  stdout?: string;
  /** Standard error so far; not with `bytes=base64`. */
  stderr?: string;
  /** With `bytes=base64`. */
  stdoutBase64?: string;
  /** With `bytes=base64`. */
  stderrBase64?: string;
  /** The value of the last expression. */
  result: Shown | null;
  /** What was shown on the way, such as figures. */
  displays: Shown[];
  /** The exception that ended it. */
  error: Raised | null;
}

/** The executions that are still known. */
export interface Executions {
  value: ExecutionOutline[];
}

/** A value, as the interpreter shows it. */
export interface Shown {
  /** Its printed form. */
  text: string;
  /** The value, when it is one of these. JavaScript rounds integers beyond 2^53; `text` has all their digits. */
  json?: null | boolean | number | string;
  /** Other forms: `text`, or bytes in `base64`. */
  forms: {
    /** Its media type. */
    type: string;
    text?: string;
    base64?: string;
  }[];
  /** Forms that were too large. */
  dropped: {
    /** Its media type. */
    type: string;
    bytes: number;
  }[];
}

/** An exception. */
export interface Raised {
  /** Its class. */
  name: string;
  message: string;
  /** As plain text. */
  traceback: string;
}

/** A file's or directory's record. */
export interface FileRecord {
  /** The last component. */
  name: string;
  /** Relative to the listed directory; absolute in the answer to an upload. */
  path: string;
  /** Links and devices are `other`: listed, never followed. */
  type: "file" | "directory" | "other";
  /** In bytes. */
  size: number;
  modifiedAt: string | null;
}

/** A page of a list. */
export interface Files {
  value: FileRecord[];
  /** If there is more: ask again with `after` set to this. */
  next: string | null;
}

/** Why something was not done. */
export interface Problem {
  /** The refusal. */
  error: {
    /** Stable. */
    code: string;
    /** For people. */
    message: string;
    /** The field, parameter or header that is wrong. */
    target: string | null;
    /** W3C trace context, for the operator's log. */
    traceId: string;
  };
  /** The code again. */
  code: string;
  /** The message again. */
  message: string;
}
