// Drives a server with the client library: `node drive.js WHAT SESSION [FILE]`. What was seen is printed as JSON.
import { createHash } from "node:crypto";
import { readFile } from "node:fs/promises";
import { setTimeout as sleep } from "node:timers/promises";
import { ExhaustedError, NotFoundError, Sandpool, SandpoolError, SessionLostError, type ExecutionEvent, type Session } from "@sandpool/client";

const [what = "", name = "", file = ""] = process.argv.slice(2);
const sandpool = new Sandpool();

const digest = (bytes: Uint8Array) => createHash("sha256").update(bytes).digest("hex");

/** What a call is refused with. */
async function refused(call: Promise<unknown>): Promise<SandpoolError> {
  try {
    await call;
  } catch (error) {
    if (error instanceof SandpoolError) return error;
    throw error;
  }
  throw new Error("nothing was refused");
}

async function until(condition: () => Promise<boolean>): Promise<void> {
  for (let tries = 0; !(await condition()); tries += 1) {
    if (tries === 200) throw new Error("waited in vain");
    await sleep(50);
  }
}

const everything: Record<string, (session: Session) => Promise<unknown>> = {
  async run(session) {
    const value = await session.run("x = 41; print('hello'); x + 1");
    const failed = await session.run("1 / 0");
    const kept = await session.run("x");
    const fresh = await session.run("x", { fresh: true });
    const [pool, pools] = [await sandpool.pool("python"), await sandpool.pools()];
    const known = await session.executions();
    return {
      value: value.record,
      failed: { outcome: failed.outcome, succeeded: failed.succeeded, name: failed.error?.name, stderr: failed.stderr },
      kept: kept.result?.json,
      fresh: fresh.error?.name,
      pools: [pool.name, pools.map((one) => one.name)],
      known: known.map((one) => one.outcome),
      again: (await session.execution(value.id)).stdout,
      info: (await session.info()).identifier,
      environment: (await session.run("import os; os.environ['STAGE']")).result?.json,
      isNew: session.isNew,
    };
  },

  async once(session) {
    const id = crypto.randomUUID();
    const code = "n = globals().get('n', 0) + 1; n";
    const counted = [await session.run(code, { id }), await session.run(code, { id }), await session.run(code)];
    return counted.map((one) => one.result?.json);
  },

  async figure(session) {
    const code = "import matplotlib.pyplot as plt\nplt.plot([1, 3, 2])\nplt.show()";
    const shown = await session.run(code);
    const images = shown.images();
    return { count: images.length, base64: Buffer.from(images[0] ?? []).toString("base64"), stderr: shown.stderr };
  },

  async stream(session) {
    const code = "import time\nfor n in range(3):\n    print(n, flush=True); time.sleep(0.3)\nprint('ä€😀')\n6 * 7";
    const seen: { event: ExecutionEvent; at: number }[] = [];
    const stream = session.stream({ code });
    for await (const event of stream) seen.push({ event, at: performance.now() });
    const rest: ExecutionEvent[] = [];
    for await (const event of session.follow(stream.id, { after: seen[0]!.event.id })) rest.push(event);
    const output: string[] = [];
    const heard = await session.run(code, { onStdout: (text) => void output.push(text) });
    return { seen, rest, output, stdout: heard.stdout };
  },

  async broken(session) {
    // Every connection of a stream breaks after its first piece.
    let connections = 0;
    const breaking: typeof fetch = async (input, init) => {
      const response = await fetch(input, init);
      if (!response.headers.get("content-type")?.startsWith("text/event-stream")) return response;
      connections += 1;
      const reader = response.body!.getReader();
      let pieces = 0;
      const body = new ReadableStream<Uint8Array>({
        async pull(controller) {
          const { done, value } = await reader.read();
          if (done) return controller.close();
          if (pieces++ > 0) return controller.error(new Error("the cable is cut"));
          controller.enqueue(value);
        },
      });
      return new Response(body, { status: response.status, headers: response.headers });
    };
    const theirs = await new Sandpool({ fetch: breaking }).session(session.pool, { id: session.id, keep: true });
    const ids: number[] = [];
    let text = "";
    for await (const event of theirs.stream({ code: "import time\nfor n in range(8):\n    print(n, flush=True); time.sleep(0.2)" })) {
      ids.push(event.id);
      if (event.type === "stdout") text += event.text;
    }
    return { connections, ids, text };
  },

  async stdin(session) {
    const text = await session.command("wc -l; exit 3", { stdin: "a\nb\n" });
    const bytes = await session.command(["od", "-An", "-tx1"], { stdin: Uint8Array.of(0, 255, 10) });
    const stream = session.stream({ argv: ["cat"], stdin: true });
    let echoed = "";
    for await (const event of stream) {
      if (event.type === "started") await stream.input("one\n");
      if (event.type === "stdout") {
        if (echoed === "") await stream.input("two\n").then(() => stream.endInput());
        echoed += event.text;
      }
    }
    const terminal = session.stream({ command: "stty size; read; stty size", terminal: { rows: 24, columns: 80 } });
    let [drawn, isLarger] = ["", false];
    for await (const event of terminal) {
      if (event.type !== "stdout") continue;
      drawn += event.text;
      if (drawn.includes("24 80") && !isLarger) {
        isLarger = true;
        await terminal.resize({ rows: 30, columns: 100 });
        await terminal.input("\n");
      }
    }
    const late = await refused(stream.input("three"));
    return { text: [text.stdout, text.exitCode, text.outcome], bytes: bytes.stdout, echoed, drawn, late: [late.status, late.code] };
  },

  async files(session) {
    const bytes = await readFile(file);
    const written = await session.files.write("in/big data.bin", bytes);
    const there = await session.run("import hashlib; hashlib.sha256(open('/mnt/data/in/big data.bin', 'rb').read()).hexdigest()");
    const made = "import os; b = os.urandom(5_000_000); open('/mnt/data/out.bin', 'wb').write(b); hashlib.sha256(b).hexdigest()";
    const sent = await session.run(made);
    const taken = await session.files.read("out.bin");
    await session.files.write("/tmp/note ü.txt", new Blob(["abc"]));
    const note = new TextDecoder().decode(await session.files.read("/tmp/note ü.txt"));
    const listed = await session.files.list("", { recursive: true });
    await session.files.remove("in");
    const left = await session.files.list();
    const missing = await refused(session.files.read("in/big data.bin"));
    return {
      written,
      there: there.result?.json,
      sent: sent.result?.json,
      taken: [taken.length, digest(taken)],
      note,
      listed: listed.map((one) => [one.path, one.type]),
      left: left.map((one) => one.name),
      missing: [missing instanceof NotFoundError, missing.code],
    };
  },

  async absent(session) {
    const unknown = await refused(session.execution(crypto.randomUUID()));
    await session.end();
    const ended = await refused(session.info());
    const pool = await refused(sandpool.pool("nowhere"));
    const token = await refused(new Sandpool({ token: "wrong" }).pools());
    const value = await refused(session.run("1", { timeoutSeconds: -1 }));
    return {
      missing: [unknown, ended, pool].map((one) => [one instanceof NotFoundError, one.status, one.code]),
      token: [token.status, token.code],
      value: [value.status, value.code, value.target],
    };
  },

  async timeout(session) {
    const began = performance.now();
    const ended = await session.run("x = 1\nwhile True: pass", { timeoutSeconds: 1 });
    return { outcome: ended.outcome, succeeded: ended.succeeded, seconds: (performance.now() - began) / 1000 };
  },

  async abort(session) {
    await session.run("x = 7");
    const outcome = async (call: (signal: AbortSignal, id: string) => Promise<unknown>) => {
      const [controller, id] = [new AbortController(), crypto.randomUUID()];
      const ended = call(controller.signal, id).then(
        () => "it went on",
        (error: Error) => error.message,
      );
      await until(async () => (await session.execution(id).catch(() => null))?.state === "running");
      controller.abort(new Error("enough"));
      const said = await ended;
      const execution = await (await session.execution(id)).wait();
      return [said, execution.outcome, execution.stateLost];
    };
    const waited = await outcome((signal, id) => session.run("while True: pass", { signal, id }));
    const streamed = await outcome(async (signal, id) => {
      for await (const _ of session.stream({ code: "while True: pass", signal, id }));
    });
    const command = await outcome((signal, id) => session.command("sleep 60", { signal, id, onStdout: () => {} }));
    return { waited, streamed, command, kept: (await session.run("x")).result?.json };
  },

  async started(session) {
    const started = await session.start({ command: "sleep 0.5; echo late" });
    const ended = await started.wait();
    const endless = await session.start({ argv: ["sleep", "60"] });
    await session.stop(endless.id, "kill");
    return [started.state, ended.stdout, (await endless.wait()).outcome];
  },

  // The server is killed while these run.
  async survive(session) {
    const text = await session.run("import time; print('begun', flush=True); time.sleep(6); print('ended')\n'kept'");
    let streamed = "";
    for await (const event of session.stream({ command: "echo begun; sleep 6; echo ended" })) {
      if (event.type === "stdout") streamed += event.text;
    }
    const shared = await session.run("n = globals().get('n', 0) + 1; n");
    return { text: text.stdout, value: text.result?.json, streamed, count: shared.result?.json };
  },

  // The session's sandbox is killed when it has its file.
  async lost(session) {
    await session.files.write("file", "precious\n");
    let lost: unknown;
    await until(() =>
      session.run("1").then(
        () => false,
        (error: unknown) => Boolean((lost = error)),
      ),
    );
    if (!(lost instanceof SandpoolError)) throw lost;
    const after = await session.run("import os; os.path.exists('/mnt/data/file')");
    return [lost instanceof SessionLostError, lost.status, lost.code, after.result?.json];
  },

  async exhausted() {
    const full = await refused(sandpool.session("python"));
    return [full instanceof ExhaustedError, full.status, full.code, full.retryAfterSeconds !== null];
  },
};

let seen: unknown;
{
  await using session = await sandpool.session("python", { id: name, env: { STAGE: "test" } });
  seen = await everything[what]!(session);
}
process.stdout.write(JSON.stringify(seen));
