// Runs JavaScript for the agent, as the REPL mode of the engine itself does: variables are kept, `const` and `let` can
// be declared again, and `await` stands at the top level.
//
// The code is evaluated through the inspector of this very process, which is the one way to that mode; no port is
// opened. What a run prints goes to the ordinary descriptors; its value, exception and end go to the agent's channel.
(function (require, process) {
  "use strict";
  const fs = require("fs");
  const inspector = require("inspector");
  const moduleApi = require("module");
  const util = require("util");
  const vm = require("vm");
  const { Socket } = require("net");

  const FROM_AGENT = 4;
  const TO_AGENT = 5;
  const INTERRUPTS = 7;
  const INTERRUPTS_OF_LISTENER = 8;
  const MAX_TEXT = 256 * 1024;
  const MAX_MESSAGE = 64 * 1024;
  const MAX_JSON = 2 * 1024 * 1024;

  // What user code may replace, and this runner needs.
  const { Atomics, Buffer, Error, Map, Number, Object, Set, String } = globalThis;
  const { clearImmediate, clearTimeout, setImmediate, setTimeout } = globalThis;
  const { parse, stringify } = JSON;
  const { readSync, writeSync } = fs;
  const { now } = Date;
  const enginesRandom = Math.random;
  const runTicks = process._tickCallback.bind(process);
  const stdout = process.stdout;
  const stderr = process.stderr;
  // What a run has printed is written before its end is said, and programs that it starts inherit ordinary pipes.
  for (const stream of [stdout, stderr]) stream._handle?.setBlocking?.(true);
  const SafePromise = Promise;
  const realExit = process.reallyExit.bind(process);

  class Interrupted extends Error {}
  class Exit extends Error {
    constructor(code) {
      super(`process.exit(${code})`);
      this.name = "Exit";
      this.code = code;
    }
  }

  // ---- the channel ------------------------------------------------------------------------------------------------

  function cut(text, limit) {
    text = String(text);
    if (text.length > limit) text = text.slice(0, limit) + "…";
    return text.toWellFormed ? text.toWellFormed() : Buffer.from(text, "utf8").toString("utf8");
  }

  // What is said of a run goes out at its end, in one piece.
  let unsent = Buffer.alloc(0);
  // Then nothing goes out.
  let isRehearsing = false;

  function say(message) {
    let json = Buffer.from(stringify(message), "utf8");
    if (json.length > MAX_JSON) {
      const rich = message.rich || message;
      for (const name of ["text", "message", "traceback"]) {
        if (rich[name]) rich[name] = rich[name].slice(0, MAX_MESSAGE) + "…";
      }
      if (rich.scalar) rich.scalar = null;
      json = Buffer.from(stringify(message), "utf8");
    }
    const header = Buffer.alloc(8);
    header.writeUInt32LE(json.length, 0);
    unsent = Buffer.concat([unsent, header, json]);
  }

  function flush() {
    while (unsent.length > 0) unsent = unsent.subarray(isRehearsing ? unsent.length : writeSync(TO_AGENT, unsent));
  }

  function scalarOf(value) {
    switch (typeof value) {
      case "boolean":
        return stringify(value);
      case "number":
        return Number.isFinite(value) ? stringify(value) : null;
      case "bigint":
        return value.toString();
      case "string":
        return value.length <= MAX_TEXT && (!value.isWellFormed || value.isWellFormed()) ? stringify(value) : null;
      default:
        return value === null ? "null" : null;
    }
  }

  function describe(value) {
    let text = "[a value whose showing was interrupted]";
    const show = () => {
      try {
        text = util.inspect(value);
      } catch {
        text = `[a value that cannot be shown: ${typeof value}]`;
      }
    };
    // Objects may have code of the user's to show them.
    if (value !== null && (typeof value === "object" || typeof value === "function")) breakable(show);
    else show();
    return text;
  }

  // ---- evaluation -------------------------------------------------------------------------------------------------

  const session = new inspector.Session();
  session.connect();

  function post(method, parameters) {
    return new SafePromise((resolve, reject) => {
      session.post(method, parameters, (error, answer) => (error ? reject(error) : resolve(answer)));
    });
  }

  // The inspector answers with references to values. This has it call a function here with the value itself. The
  // function is known to the inspector by number alone, so user code cannot see it.
  const caught = { value: undefined };
  const receive = (value) => {
    caught.value = value;
  };
  const receivers = new Map();

  function unusedName() {
    return `__${Math.random()}`.replace(".", "");
  }

  async function receiverIn(target, contextId) {
    const name = unusedName();
    Object.defineProperty(target, name, { value: receive, configurable: true });
    try {
      const { result } = await post("Runtime.evaluate", { expression: name, contextId, objectGroup: "runner" });
      return result.objectId;
    } finally {
      delete target[name];
    }
  }

  async function valueOf(remote, receiver) {
    if (remote.type === "undefined") return undefined;
    if (remote.objectId === undefined && "value" in remote) return remote.value;
    const { objectId, unserializableValue } = remote;
    const argument = objectId ? { objectId } : { unserializableValue };
    await post("Runtime.callFunctionOn", {
      objectId: receiver,
      functionDeclaration: "function (value) { this(value); }",
      arguments: [argument],
    });
    const { value } = caught;
    caught.value = undefined;
    return value;
  }

  // Calls a function that SIGINT breaks off. Answers whether it came to its end.
  const room = vm.createContext({ work: null });
  const enter = new vm.Script("work()", { filename: "sandpool" });
  function breakable(work) {
    let isWhole = false;
    room.work = () => {
      work();
      if (isSignalDue()) Atomics.wait(nothing, 0, 0, SIGNAL_LIMIT_MS);
      isWhole = true;
    };
    Atomics.store(shared, HELD, 1);
    try {
      enter.runInContext(room, { breakOnSigint: true, displayErrors: false });
    } catch (error) {
      if (error?.code !== "ERR_SCRIPT_EXECUTION_INTERRUPTED") throw error;
      isWhole = false;
    }
    // Taken up, before the listener may look: it would break into this runner.
    if (!isWhole) {
      signalled = serial;
      Atomics.store(shared, TAKEN, serial);
    }
    Atomics.store(shared, HELD, 0);
    return isWhole;
  }

  // What evaluations wait for, as long as they do. The inspector holds it but weakly, and when it is collected (code that was
  // interrupted waited for what nobody keeps) the inspector calls back in the middle of the collection, which ends Node.
  const pending = new Set();
  const { onInit } = require("v8").promiseHooks;

  function evaluate(expression, contextId) {
    const parameters = { expression, contextId, replMode: true, awaitPromise: true, objectGroup: "run", silent: true };
    return new SafePromise((resolve, reject) => {
      let settle = null;
      let answered = null;
      // The first promise that is made is the one of the code as a whole.
      let whole = null;
      const unhook = onInit((promise) => {
        if (whole === null) pending.add((whole = promise));
      });
      const isWhole = breakable(() => {
        session.post("Runtime.evaluate", parameters, (error, answer) => {
          answered = { error, answer };
          pending.delete(whole);
          settle?.();
        });
        unhook();
        // What waits for promises is broken off with it. Nothing of this runner waits here: it would not be heard of again.
        runTicks();
      });
      unhook();
      settle = () => {
        const { error, answer } = answered;
        if (!error) resolve(answer);
        else reject(/terminated/.test(error.message) ? new Interrupted("interrupted") : error);
      };
      if (!isWhole) reject(new Interrupted("interrupted"));
      else if (answered) settle();
    });
  }

  function compiles(code) {
    try {
      new vm.Script(code, { filename: "sandpool" });
      return true;
    } catch {
      return false;
    }
  }

  // `{ a: 1 }` is meant as an object, as long as it can be one.
  function asObject(code) {
    return /^\s*\{/.test(code) && !/;\s*$/.test(code) && compiles(`(${code}\n)`) ? `(${code}\n)` : code;
  }

  // ---- rewriting --------------------------------------------------------------------------------------------------
  //
  // The engine lets `let` be declared again by `let`, but by nothing else; and evaluated code has no way to import. So
  // what stands at the top level is put in other words: `const` as `let`, `import` as a call. Nothing within brackets,
  // strings, templates, comments or regular expressions is touched, and code that is not understood stays as it is.

  const WORD = /[\p{ID_Start}$_][\p{ID_Continue}$\u200c\u200d]*/uy;
  const REGEX = /\/(?:[^\\/[\n]|\\.|\[(?:[^\\\]\n]|\\.)*\])+\/[a-z]*/y;
  const NUMBER = /\.?\d[\w.]*/y;
  const STATIC_IMPORT =
    /import\s+(?:([\w$]+)\s*(?:,\s*)?)?(?:\*\s*as\s+([\w$]+)\s*|\{([^}]*)\}\s*)?from\s*(['"])([^'"\n]+)\4/y;
  const BARE_IMPORT = /import\s*(['"])([^'"\n]+)\1/y;
  const BEFORE_REGEX = new Set(
    "return typeof instanceof in of new delete void throw case do else await yield".split(" "),
  );

  function match(pattern, code, at) {
    pattern.lastIndex = at;
    return pattern.exec(code);
  }

  function endOfString(code, at) {
    const quote = code[at];
    for (at += 1; at < code.length; at += 1) {
      if (code[at] === "\\") at += 1;
      else if (code[at] === quote) return at + 1;
      else if (code[at] === "\n") return -1;
    }
    return -1;
  }

  // The words at which something may be changed: `{ word, at, isTop }`. Null when the code is not understood.
  function words(code) {
    const found = [];
    const open = [];
    let last = "";
    let at = 0;
    const inTemplate = (from) => {
      for (at = from; at < code.length; at += 1) {
        if (code[at] === "\\") at += 1;
        else if (code[at] === "`") {
          at += 1;
          last = ")";
          return true;
        } else if (code[at] === "$" && code[at + 1] === "{") {
          at += 2;
          open.push("`");
          last = "{";
          return true;
        }
      }
      return false;
    };
    while (at < code.length) {
      const c = code[at];
      let got;
      if (/\s/.test(c)) at += 1;
      else if (code.startsWith("//", at) || (at === 0 && code.startsWith("#!"))) {
        const end = code.indexOf("\n", at);
        at = end < 0 ? code.length : end;
      } else if (code.startsWith("/*", at)) {
        const end = code.indexOf("*/", at + 2);
        if (end < 0) return null;
        at = end + 2;
      } else if (c === '"' || c === "'") {
        at = endOfString(code, at);
        if (at < 0) return null;
        last = ")";
      } else if (c === "`") {
        if (!inTemplate(at + 1)) return null;
      } else if (c === "/" && !/^[\w$)\]}]/u.test(last) && (got = match(REGEX, code, at))) {
        at += got[0].length;
        last = ")";
      } else if ((got = match(NUMBER, code, at))) {
        at += got[0].length;
        last = ")";
      } else if ((got = match(WORD, code, at))) {
        if (last !== "." && last !== "#") found.push({ word: got[0], at, isTop: open.length === 0 });
        at += got[0].length;
        last = BEFORE_REGEX.has(got[0]) && last !== "." ? "(" : "a";
      } else {
        if ("([{".includes(c)) open.push(c);
        if (")]}".includes(c)) {
          const opened = open.pop();
          if (opened === undefined) return null;
          if (opened === "`") {
            if (c !== "}" || !inTemplate(at + 1)) return null;
            continue;
          }
        }
        last = c === "." && code.startsWith("...", at) ? "(" : c;
        at += last === "(" && c === "." ? 3 : 1;
      }
    }
    return open.length === 0 ? found : null;
  }

  function bindings(found) {
    const [, fallback, whole, named] = found;
    const from = `await __import(${stringify(found[5])})`;
    if (whole) return fallback ? `let ${whole} = ${from}, { default: ${fallback} } = ${whole}` : `let ${whole} = ${from}`;
    const parts = (named || "")
      .split(",")
      .map((part) => part.trim())
      .filter((part) => part !== "")
      .map((part) => part.replace(/\s+as\s+/, ": ").replace(/\s+/g, " "));
    if (fallback) parts.unshift(`default: ${fallback}`);
    return `let { ${parts.join(", ")} } = ${from}`;
  }

  function rewritten(code) {
    const found = words(code);
    if (found === null) return code;
    let out = "";
    let copied = 0;
    const replace = (at, length, text) => {
      out += code.slice(copied, at) + text;
      copied = at + length;
    };
    for (const { word, at, isTop } of found) {
      if (at < copied) continue;
      if (word === "const" && isTop) replace(at, 5, "let  ");
      else if (word === "import") {
        const rest = code.slice(at + 6);
        let got;
        if (/^\s*\(/.test(rest)) replace(at, 6, "__import");
        else if (isTop && (got = match(STATIC_IMPORT, code, at))) replace(at, got[0].length, `${bindings(got)};`);
        else if (isTop && (got = match(BARE_IMPORT, code, at))) {
          replace(at, got[0].length, `await __import(${stringify(got[2])});`);
        }
      }
    }
    return out + code.slice(copied);
  }

  // `code` with the kind of one declaration changed to what the name already is; null when there is none to change.
  function redeclared(code, name) {
    for (const { word, at, isTop } of words(code) || []) {
      if (!isTop || !["let", "var"].includes(word)) continue;
      const end = at + word.length;
      const next = code.slice(end).match(/^\s+(?:([\p{ID_Start}$_][\p{ID_Continue}$]*)|[{[])/u);
      if (next && (next[1] === name || (next[1] === undefined && code.slice(end).includes(name)))) {
        return code.slice(0, at) + (word === "let" ? "var" : "let") + code.slice(end);
      }
    }
    return null;
  }

  // ---- namespaces -------------------------------------------------------------------------------------------------

  const userRequire = moduleApi.createRequire(`${process.cwd()}/`);
  let initialDescriptors = [];
  // What Node loads with all that belongs to it as soon as it is looked at, which most sessions never do.
  const LATE =
    /Stream|QueuingStrategy$|Crypto|^Performance|^(BroadcastChannel|CloseEvent|EventSource|FormData|Headers|MessageEvent|Request|Response|Storage|WebSocket)$/;

  // Furnishes the namespace of sessions, after Node has put in what scripts of its command line have.
  function furnish() {
    Object.defineProperty(globalThis, "require", { value: userRequire, writable: true, configurable: true });
    Object.defineProperty(globalThis, "module", {
      value: { exports: {}, paths: userRequire.resolve.paths("x") || [] },
      writable: true,
      configurable: true,
    });
    Object.defineProperty(globalThis, "exports", {
      value: globalThis.module.exports,
      writable: true,
      configurable: true,
    });
    for (const name of moduleApi.builtinModules) {
      // As in the REPL: the modules of Node itself are there by name, and a variable of that name takes their place.
      if (name.includes("/") || name.startsWith("_") || name in globalThis) continue;
      const replace = (value) =>
        Object.defineProperty(globalThis, name, { value, writable: true, configurable: true, enumerable: true });
      Object.defineProperty(globalThis, name, {
        get: () => {
          const loaded = userRequire(name);
          replace(loaded);
          return loaded;
        },
        set: replace,
        configurable: true,
        enumerable: false,
      });
    }
    // Evaluated code has no importer of its own: this script has, and its place is the working directory.
    const importer = new vm.Script("(specifier, options) => import(specifier, options)", {
      filename: `${process.cwd()}/sandpool`,
      importModuleDynamically: vm.constants && vm.constants.USE_MAIN_CONTEXT_DEFAULT_LOADER,
    }).runInThisContext();
    Object.defineProperty(globalThis, "__import", { value: importer, writable: true, configurable: true });
    const builtins = new Set(vm.runInContext("Object.getOwnPropertyNames(globalThis)", room));
    initialDescriptors = Object.getOwnPropertyNames(globalThis)
      .filter((name) => !builtins.has(name))
      .map((name) => [name, LATE.test(name) ? undefined : Object.getOwnPropertyDescriptor(globalThis, name)]);
  }

  async function freshNamespace() {
    const name = unusedName();
    const context = vm.createContext({}, { name });
    const inside = vm.runInContext("globalThis", context);
    for (const [key, descriptor] of initialDescriptors) {
      if (key === "globalThis" || key === "global") continue;
      try {
        Object.defineProperty(inside, key, descriptor ?? Object.getOwnPropertyDescriptor(globalThis, key));
      } catch {
        // One that the new namespace has of its own stays.
      }
    }
    inside.global = inside;
    install(inside.Math);
    let id;
    const note = ({ params }) => {
      if (params.context.name === name) id = params.context.id;
    };
    session.on("Runtime.executionContextCreated", note);
    await post("Runtime.enable");
    session.removeListener("Runtime.executionContextCreated", note);
    await post("Runtime.disable");
    return { contextId: id, receiver: await receiverIn(inside, id) };
  }

  // ---- runs -------------------------------------------------------------------------------------------------------

  let running = null;
  let serial = 0;

  // What the listener and this thread tell each other: the number of the present run or 0, the last run whose interrupt
  // has been taken up, and whether SIGINT breaks off what this thread does.
  const RUNNING = 0;
  const TAKEN = 1;
  const HELD = 2;
  const shared = new Int32Array(new SharedArrayBuffer(12));

  // Looks whether the present run is to be interrupted. It asks the kernel, and while code runs not often: to hear that
  // there is nothing is an exception.
  const LOOK_EVERY_MS = 5;
  const told = Buffer.alloc(64);
  let looked = 0;
  let wanted = 0;
  function isWanted(every) {
    if (wanted !== serial && now() - looked >= every) {
      looked = now();
      try {
        const count = readSync(INTERRUPTS, told);
        for (let at = 0; at + 4 <= count; at += 4) wanted = told.readInt32LE(at);
      } catch {
        // Nothing was said.
      }
    }
    return wanted === serial;
  }

  // Whether SIGINT is still to come to the present run: it follows an interrupt by 150 ms, unless the run has ended by then.
  // It must not come upon the end itself, where Node does not look for it: it would be kept and break off what is evaluated
  // next, or end Node. So a run that is to be interrupted waits for it. Runs younger than this are over before it.
  const SIGNAL_FROM_MS = 75;
  const SIGNAL_LIMIT_MS = 2000;
  const nothing = new Int32Array(new SharedArrayBuffer(4));
  let begun = 0;
  let signalled = 0;
  let onSignal = () => {};
  function isSignalDue() {
    return running !== null && signalled !== serial && now() - begun >= SIGNAL_FROM_MS && isWanted(0);
  }

  async function takeSignal() {
    if (!isSignalDue()) return;
    await new SafePromise((resolve) => {
      const limit = setTimeout(resolve, SIGNAL_LIMIT_MS);
      onSignal = () => {
        clearTimeout(limit);
        resolve();
      };
    });
    onSignal = () => {};
  }

  // Code that prints takes an interrupt up after a print, as an exception: broken into in the middle of one, Node itself
  // may not survive. Code that catches the exception is broken into all the same, a moment later.
  let thrown = 0;
  for (const name of ["log", "info", "debug", "warn", "error", "table", "dir", "trace", "group"]) {
    const print = console[name];
    const printed = function (...given) {
      print.apply(console, given);
      if (running && thrown !== serial && isWanted(LOOK_EVERY_MS)) {
        thrown = serial;
        throw new Interrupted("interrupted");
      }
    };
    console[name] = Object.defineProperty(printed, "name", { value: name });
  }

  class Run {
    constructor() {
      this.failed = new SafePromise((_, reject) => {
        this.fail = reject;
      });
      this.failed.catch(() => {});
    }
  }

  // Ends a run as it would end a program; the interpreter and its variables stay.
  process.exit = (code) => {
    const given = code === undefined ? process.exitCode : code;
    process.exitCode = undefined;
    throw new Exit(Number(given) || 0);
  };
  process.on("SIGINT", () => {
    signalled = serial;
    onSignal();
  });
  process.on("uncaughtException", (error) => {
    if (running) running.fail(error);
    else if (!(error instanceof Exit)) report(error);
  });
  process.on("unhandledRejection", (error) => {
    if (running) running.fail(error);
    else if (!(error instanceof Exit)) report(error);
  });

  function isError(value) {
    return util.types.isNativeError(value) || value instanceof Error;
  }

  // Stacks end where the user's code does.
  const RUNNER = /\bsandpool:\d|node:inspector|node:vm|node:internal\/|^\s+at new Promise \(<anonymous>\)$/;
  Error.prepareStackTrace = (error, frames) => {
    const lines = frames.map((frame) => `    at ${frame}`);
    const first = lines.findIndex((line) => /\bsandpool:\d|node:inspector/.test(line));
    const kept = first < 0 ? lines : lines.slice(0, first);
    let head;
    try {
      head = Error.prototype.toString.call(error);
    } catch {
      head = "Error";
    }
    return [head, ...kept].join("\n");
  };

  function traceOf(error) {
    if (!isError(error)) return `Uncaught ${describe(error)}`;
    const lines = describe(error).split("\n");
    return `Uncaught ${lines.filter((line) => !/^\s+at /.test(line) || !RUNNER.test(line)).join("\n")}`;
  }

  function report(error) {
    const text = cut(traceOf(error), MAX_TEXT);
    stderr.write(`${text}\n`);
    return text;
  }

  function errorMessage(nonce, error) {
    if (error instanceof Interrupted) {
      stderr.write("Interrupted\n");
      return { t: "error", n: nonce, name: "Interrupted", message: "", traceback: "Interrupted" };
    }
    const traceback = error instanceof Exit ? error.message : report(error);
    let name = "Error";
    let message = "";
    try {
      name = isError(error) ? String(error.name) : typeof error;
      message = isError(error) ? String(error.message) : describe(error);
    } catch {
      // An exception whose name or message is an exception itself has none.
    }
    return { t: "error", n: nonce, name: cut(name, 200), message: cut(message, MAX_MESSAGE), traceback };
  }

  function settle() {
    return new SafePromise((resolve) => setImmediate(() => setImmediate(resolve)));
  }

  async function attempt(code, fresh) {
    const space = fresh ? await freshNamespace() : { contextId: undefined, receiver: receivers.get("main") };
    let text = rewritten(asObject(code));
    let answer;
    let error;
    // A declaration that clashes is found before anything runs. Each round changes one.
    for (let rounds = 0; rounds < 32; rounds += 1) {
      answer = await evaluate(text, space.contextId);
      const details = answer.exceptionDetails;
      if (!details) break;
      error = await valueOf(details.exception || { type: "string", value: details.text }, space.receiver);
      const clash = isError(error) && /^Identifier '(.+)' has already been declared$/.exec(error.message);
      const changed = clash && error.name === "SyntaxError" ? redeclared(text, clash[1]) : null;
      if (changed === null) throw error;
      text = changed;
    }
    if (answer.exceptionDetails) throw error;
    let value = await valueOf(answer.result, space.receiver);
    // `main()` at the end means: run it.
    if (util.types.isPromise(value)) value = await value;
    return { value };
  }

  async function run({ nonce, exec, code, fresh }) {
    process.env.SANDPOOL_EXECUTION = exec;
    const own = new Run();
    running = own;
    // The agent counts its runs in what it calls them.
    serial = Number(nonce.slice(nonce.indexOf("-") + 1));
    begun = now();
    Atomics.store(shared, RUNNING, serial);
    let ok = true;
    let isPending = true;
    // What goes on in later turns may be a loop that only the listener can break into.
    const check = setImmediate(() => isPending && listen());
    try {
      const attempted = attempt(code, fresh);
      const ended = () => {
        isPending = false;
      };
      attempted.then(ended, ended);
      const { value } = await SafePromise.race([attempted, own.failed]);
      await SafePromise.race([settle(), own.failed]);
      Atomics.store(shared, RUNNING, 0);
      await takeSignal();
      if (value !== undefined) {
        if (!fresh && !isRehearsing) keepLast(value);
        const rich = { text: cut(describe(value), MAX_TEXT), scalar: scalarOf(value) };
        say({ t: "value", n: nonce, rich });
      }
    } catch (error) {
      Atomics.store(shared, RUNNING, 0);
      await takeSignal();
      ok = error instanceof Exit && error.code === 0;
      if (!ok) say(errorMessage(nonce, error));
    }
    clearImmediate(check);
    running = null;
    session.post("Runtime.releaseObjectGroup", { objectGroup: "run" });
    say({ t: "end", n: nonce, ok });
    flush();
  }

  function keepLast(value) {
    try {
      Object.defineProperty(globalThis, "_", { value, writable: true, configurable: true, enumerable: false });
    } catch {
      // User code has fixed a value of its own to the name.
    }
  }

  function activate({ env, seed }) {
    for (const [name, value] of env) process.env[name] = value;
    // The engine seeded its generators from the kernel when this process began. Where that is more than one process by now, they
    // have been replaced.
    if (renewed !== null && seed) stir(Buffer.from(seed, "hex"));
  }

  // ---- one process of several -------------------------------------------------------------------------------------
  //
  // A machine may go on from the memory of another. The engine keeps the state of `Math.random` to itself, one of each context,
  // and offers no way to seed it again: so a generator of this runner's takes its place (xoshiro128**, https://prng.di.unimi.it;
  // as many bits of state as the engine's, and as many of each number).

  // The words of its state, and what draws from it; null as long as the engine's own is used.
  let renewed = null;

  function stir(bytes) {
    const { state } = renewed;
    for (let at = 0; at < 4; at += 1) state[at] ^= bytes.readInt32LE(4 * at);
    if ((state[0] | state[1] | state[2] | state[3]) === 0) state[0] = 1;
  }

  function generator() {
    const { imul } = Math;
    const state = new Int32Array(4);
    const word = () => {
      const product = imul(state[1], 5);
      const result = imul((product << 7) | (product >>> 25), 9);
      const shifted = state[1] << 9;
      state[2] ^= state[0];
      state[3] ^= state[1];
      state[1] ^= state[2];
      state[0] ^= state[3];
      state[2] ^= shifted;
      state[3] = (state[3] << 11) | (state[3] >>> 21);
      return result >>> 0;
    };
    const drawn = { random: () => ((word() >>> 5) * 0x4000000 + (word() >>> 6)) / 0x20000000000000 };
    return { state, random: drawn.random };
  }

  function install(where) {
    if (renewed === null) return;
    Object.defineProperty(where, "random", {
      value: renewed.random,
      writable: true,
      configurable: true,
      enumerable: false,
    });
  }

  // Also in contexts that code makes from here on, each of which has a `Math` of its own.
  function installInContexts() {
    const { createContext } = vm;
    const math = new vm.Script("Math", { filename: "sandpool" });
    const ofContext = ({ contextName: name, contextOrigin: origin, contextCodeGeneration: codeGeneration, microtaskMode } = {}) =>
      Object.fromEntries(Object.entries({ name, origin, codeGeneration, microtaskMode }).filter(([, value]) => value !== undefined));
    vm.createContext = function (object, options) {
      const isNew = object === null || typeof object !== "object" || (!vm.isContext(object) && !("Math" in object));
      const context = createContext(object, options);
      if (isNew) install(math.runInContext(context));
      return context;
    };
    vm.runInNewContext = function (code, object, options) {
      if (typeof options === "string") options = { filename: options };
      return vm.runInContext(code, vm.createContext(object, ofContext(options)), options);
    };
    vm.Script.prototype.runInNewContext = function (object, options) {
      return this.runInContext(vm.createContext(object, ofContext(options)), options);
    };
    moduleApi.syncBuiltinESMExports();
  }

  function renew({ thorough }) {
    // First of all, at the one time at which OpenSSL is sure to take a new seed.
    if (thorough) require("crypto").randomBytes(1);
    if (renewed === null) {
      const isTheEngines = Math.random === enginesRandom;
      renewed = generator();
      // One that code of the session has put there is that code's.
      if (isTheEngines) install(Math);
      installInContexts();
    }
    const fresh = Buffer.alloc(16);
    const device = fs.openSync("/dev/urandom", "r");
    try {
      readSync(device, fresh, 0, 16);
    } finally {
      fs.closeSync(device);
    }
    stir(fresh);
    // When this process began, as programs that measure see it, was long before the machine was.
    const { performance } = require("perf_hooks");
    const origin = now() - performance.now();
    Object.defineProperty(performance, "timeOrigin", { get: () => origin, configurable: true, enumerable: true });
    // What was drawn ahead is drawn away. What is not loaded has drawn nothing.
    if (process.moduleLoadList.includes("NativeModule internal/crypto/random")) {
      const { randomInt, randomUUID } = require("crypto");
      for (let count = 0; count < 128; count += 1) randomUUID();
      for (let count = 0; count < 1024; count += 1) randomInt(2);
    }
  }

  // ---- what the agent says ----------------------------------------------------------------------------------------

  // A thread of its own breaks into code that loops where SIGINT does not: after the run has waited for something. It is
  // dear, with an engine of its own, and so it begins with the first run that waits. It breaks into code only when this
  // thread does not take up the interrupt by itself, and goes on until it does.
  let listener = null;
  function listen() {
    if (listener !== null) return;
    const { Worker } = require("worker_threads");
    listener = new Worker(
      `(${function (INTERRUPTS, RUNNING, TAKEN, HELD) {
        const { workerData } = require("worker_threads");
        const shared = new Int32Array(workerData);
        const session = new (require("inspector").Session)();
        session.connectToMainThread();
        function interrupt(serial) {
          if (Atomics.load(shared, RUNNING) !== serial || Atomics.load(shared, TAKEN) === serial) return;
          // What SIGINT breaks off is left to it.
          if (Atomics.load(shared, HELD) !== 0) return void setTimeout(interrupt, 50, serial);
          // Once is enough when it is carried out: a second one would come upon this runner, while it ends the run.
          session.post("Runtime.terminateExecution", () => setTimeout(interrupt, 1000, serial));
        }
        let inbox = Buffer.alloc(0);
        const channel = new (require("net").Socket)({ fd: INTERRUPTS, readable: true, writable: false });
        channel.on("data", (piece) => {
          inbox = Buffer.concat([inbox, piece]);
          for (; inbox.length >= 4; inbox = inbox.subarray(4)) {
            const serial = inbox.readInt32LE(0);
            if (Atomics.load(shared, RUNNING) === serial) setTimeout(interrupt, 150, serial);
          }
        });
        channel.on("error", () => {});
      }})(${INTERRUPTS_OF_LISTENER}, ${RUNNING}, ${TAKEN}, ${HELD})`,
      { eval: true, workerData: shared.buffer, execArgv: [], env: {}, trackUnmanagedFds: false },
    );
    listener.on("error", () => realExit(1));
    listener.unref();
  }

  const waiting = [];
  let isBusy = false;

  // A run begins in a turn of its own, and not when a promise is kept: no promise could be waited for within it.
  function begin() {
    if (isBusy || waiting.length === 0) return;
    isBusy = true;
    run(waiting.shift()).then(() => {
      isBusy = false;
      if (waiting.length > 0) setImmediate(begin);
    });
  }

  function hear(message) {
    switch (message.op) {
      case "interrupt":
        if (!running) break;
        wanted = serial;
        Atomics.store(shared, TAKEN, serial);
        running.fail(new Interrupted("interrupted"));
        break;
      case "run":
        waiting.push(message);
        begin();
        break;
      case "activate":
        activate(message);
        break;
      case "renew":
        try {
          renew(message);
        } finally {
          say({ t: "renewed" });
          flush();
        }
    }
  }

  let inbox = Buffer.alloc(0);
  function receiveBytes(piece) {
    inbox = inbox.length === 0 ? piece : Buffer.concat([inbox, piece]);
    while (inbox.length >= 4) {
      const length = inbox.readUInt32LE(0);
      if (inbox.length < 4 + length) break;
      const message = parse(inbox.toString("utf8", 4, 4 + length));
      inbox = inbox.subarray(4 + length);
      hear(message);
    }
  }

  // Runs of all kinds that nobody hears of: what a session's first run needs is loaded and compiled before there is one. Each
  // is run as often as the engine wants to see code until it remembers how it went.
  const REHEARSALS = ["7", "console.log(7, '7', [7])", "null.x", "({ a: [7] })"];
  const ROUNDS = 10;

  async function rehearse() {
    const kept = [stdout, stderr].map((stream) => [stream, stream.write]);
    isRehearsing = true;
    for (const [stream] of kept) stream.write = () => true;
    for (let number = 1; number <= ROUNDS * REHEARSALS.length; number += 1) {
      const code = REHEARSALS[number % REHEARSALS.length];
      const message = Buffer.from(stringify({ op: "run", nonce: `-${-number}`, exec: "", code, fresh: false }));
      const header = Buffer.alloc(4);
      header.writeUInt32LE(message.length);
      receiveBytes(Buffer.concat([header, message]));
      while (isBusy) await settle();
    }
    for (const [stream] of kept) delete stream.write;
    delete process.env.SANDPOOL_EXECUTION;
    isRehearsing = false;
  }

  // Gives back what the start has used. Only this kind of collection returns memory to the kernel, and a new context is the
  // one that has it.
  function collect() {
    const { setFlagsFromString } = require("v8");
    setFlagsFromString("--expose-gc");
    const gc = vm.runInNewContext("gc");
    setFlagsFromString("--no-expose-gc");
    gc({ type: "major", execution: "sync", flavor: "last-resort" });
  }

  // `import()` looks where `require` looks, also where the image keeps its packages.
  if (moduleApi.registerHooks) {
    moduleApi.registerHooks({
      resolve(specifier, context, next) {
        try {
          return next(specifier, context);
        } catch (error) {
          if (error.code !== "ERR_MODULE_NOT_FOUND" || /^[./]|:/.test(specifier)) throw error;
          const { pathToFileURL } = require("url");
          return next(pathToFileURL(userRequire.resolve(specifier)).href, context);
        }
      },
    });
  }

  (async () => {
    receivers.set("main", await receiverIn(globalThis, undefined));
    await evaluate("1", undefined);
    await settle();
    furnish();
    // The first import may warn that its means are new: before there is a session, not in the output of its code.
    await globalThis.__import("fs");
    session.post("Runtime.releaseObjectGroup", { objectGroup: "run" });
    await rehearse();
    collect();
    const channel = new Socket({ fd: FROM_AGENT, readable: true, writable: false });
    channel.on("data", receiveBytes);
    channel.on("end", () => realExit(0));
    channel.on("error", () => realExit(0));
    say({ t: "ready", version: process.versions.node });
    flush();
  })();
});
