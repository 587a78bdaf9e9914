import assert from "node:assert/strict";
import { test } from "node:test";
import { NotFoundError, type ExecutionEvent, type ExecutionStream } from "../dist/index.js";
import { events, ID, inTurn, opened, record, refuse, say, serving, SESSION } from "./server.js";

const EXECUTIONS = `${SESSION}/executions`;
const EVENTS = `${EXECUTIONS}/${ID}/events`;
const ENDING = { outcome: "succeeded", exitCode: null, detail: null, durationMilliseconds: 1, stateLost: false, truncated: { stdout: 0, stderr: 0 } };

const event = (name: string, id: number | null, data: object) =>
  `event: ${name}\ndata: ${JSON.stringify(data)}\n${id === null ? "" : `id: ${id}\n`}\n`;
const finished = (id: number) => event("finished", id, ENDING);

async function collect(stream: ExecutionStream): Promise<ExecutionEvent[]> {
  const all = [];
  for await (const one of stream) all.push(one);
  return all;
}

test("events have types", async () => {
  const value = { text: "42", json: 42, forms: [], dropped: [] };
  const error = { name: "E", message: "m", traceback: "t" };
  const text =
    event("started", 1, {}) + ":\n\n" + event("stdout", 2, { text: "a" }) + event("stderr", 3, { text: "b" }) + event("news", 4, {}) +
    event("display", 5, value) + event("result", 6, value) + event("error", 7, error) + event("stdout", null, { text: "\ufffd" }) + finished(8);
  await serving({ [`PUT ${SESSION}`]: opened, [`POST ${EXECUTIONS}`]: events(text) }, async (sandpool, asked) => {
    const session = await sandpool.session("python", { id: "chat-17" });
    assert.deepEqual(await collect(session.stream({ code: "1", fresh: true })), [
      { type: "started", id: 1 },
      { type: "stdout", id: 2, text: "a" },
      { type: "stderr", id: 3, text: "b" },
      { type: "display", id: 5, value },
      { type: "result", id: 6, value },
      { type: "error", id: 7, error },
      { type: "stdout", id: 7, text: "\ufffd" },
      { type: "finished", id: 8, ...ENDING },
    ]);
    assert.equal(asked[1]!.headers.accept, "text/event-stream");
    assert.equal(JSON.parse(asked[1]!.body.toString()).fresh, true);
  });
});

test("a stream that breaks goes on after the last event, and tells nothing twice", async () => {
  const first = event("started", 1, {}) + event("stdout", 2, { text: "a" }) + event("stdout", null, { text: "\ufffd" }) + "event: stdout\nda";
  const answers = {
    [`PUT ${SESSION}`]: opened,
    [`POST ${EXECUTIONS}`]: events(first, { breaks: true }),
    [`GET ${EVENTS}`]: inTurn(
      refuse(500, "Broken"),
      refuse(404, "NoSessionFoundError"),
      events(event("stdout", 2, { text: "a" }) + event("stdout", 3, { text: "b" })),
      events(event("stdout", null, { text: "\ufffd" }) + finished(4)),
    ),
  };
  await serving(answers, async (sandpool, asked) => {
    const session = await sandpool.session("python", { id: "chat-17" });
    const all = await collect(session.stream({ code: "1", id: ID }));
    assert.deepEqual(all.map((one) => ("text" in one ? one.text : one.type)), ["started", "a", "b", "\ufffd", "finished"]);
    assert.deepEqual(
      asked.slice(2).map((one) => one.url),
      [`${EVENTS}?after=2`, `${EVENTS}?after=2`, `${EVENTS}?after=2`, `${EVENTS}?after=3`],
    );
  });
});

test("a stream is given up when its execution is not there any more, and when it cannot be begun", async () => {
  const answers = {
    [`PUT ${SESSION}`]: opened,
    [`POST ${EXECUTIONS}`]: inTurn(events(event("started", 1, {})), refuse(500, "Broken")),
    [`GET ${EVENTS}`]: refuse(404, "ExecutionNotFound"),
  };
  await serving(answers, async (sandpool, asked) => {
    const session = await sandpool.session("python", { id: "chat-17" });
    await assert.rejects(collect(session.stream({ code: "1", id: ID })), NotFoundError);
    const before = asked.length;
    await assert.rejects(collect(session.stream({ code: "1", id: ID })), { status: 500 });
    assert.equal(asked.length, before + 1);
  });
});

test("following begins where it is told to", async () => {
  await serving({ [`PUT ${SESSION}`]: opened, [`GET ${EVENTS}`]: events(finished(9)) }, async (sandpool, asked) => {
    const session = await sandpool.session("python", { id: "chat-17" });
    assert.equal((await collect(session.follow(ID, { after: 8 }))).length, 1);
    assert.equal(asked[1]!.url, `${EVENTS}?after=8`);
  });
});

test("callbacks hear the output, and the record follows", async () => {
  const text = event("started", 1, {}) + event("stdout", 2, { text: "a" }) + event("stderr", 3, { text: "b" }) + finished(4);
  const answers = {
    [`PUT ${SESSION}`]: opened,
    [`POST ${EXECUTIONS}`]: events(text),
    [`GET ${EXECUTIONS}/${ID}`]: say(record({ stdout: "a", stderr: "b" })),
    [`POST ${EXECUTIONS}/${ID}/stop`]: say(null),
  };
  await serving(answers, async (sandpool, asked) => {
    const session = await sandpool.session("python", { id: "chat-17" });
    const heard: string[] = [];
    const onStdout = async (text: string) => void heard.push(text);
    const execution = await session.run("1", { id: ID, onStdout, onStderr: (text) => void heard.push(text) });
    assert.deepEqual([heard, execution.stdout, execution.stderr], [["a", "b"], "a", "b"]);
    const failing = () => {
      throw new Error("no room");
    };
    await assert.rejects(session.run("1", { id: ID, onStdout: failing }), /no room/);
    assert.equal(asked.at(-1)!.url, `${EXECUTIONS}/${ID}/stop`);
  });
});

test("aborting a stream interrupts what it runs; leaving it does not, nor does aborting one that follows", async () => {
  const endless = (_: unknown, response: import("node:http").ServerResponse) => {
    response.writeHead(200).write(event("started", 1, {}));
  };
  const answers = {
    [`PUT ${SESSION}`]: opened,
    [`POST ${EXECUTIONS}`]: endless,
    [`GET ${EVENTS}`]: endless,
    [`POST ${EXECUTIONS}/${ID}/stop`]: say(null),
  };
  await serving(answers, async (sandpool, asked) => {
    const session = await sandpool.session("python", { id: "chat-17" });
    const stops = () => asked.filter((one) => one.url.endsWith("/stop")).length;
    for await (const one of session.stream({ code: "1", id: ID })) if (one.type === "started") break;
    await assert.rejects(collect(session.follow(ID, { signal: AbortSignal.timeout(50) })), { name: "TimeoutError" });
    assert.equal(stops(), 0);
    await assert.rejects(collect(session.stream({ code: "1", id: ID, signal: AbortSignal.timeout(50) })), { name: "TimeoutError" });
    assert.equal(stops(), 1);
    // Also while whoever reads is busy with an event.
    const controller = new AbortController();
    for await (const one of session.stream({ code: "1", id: ID, signal: controller.signal })) {
      controller.abort();
      if (one.type === "started") break;
    }
    assert.equal(stops(), 2);
  });
});

test("a slow reader is no silence of the server", async () => {
  const text = event("started", 1, {}) + finished(2);
  const halves = (_: unknown, response: import("node:http").ServerResponse) => {
    response.writeHead(200).write(text.slice(0, 30));
    setTimeout(() => response.end(text.slice(30)), 20);
  };
  await serving(
    { [`PUT ${SESSION}`]: opened, [`POST ${EXECUTIONS}`]: halves },
    async (sandpool) => {
      const session = await sandpool.session("python", { id: "chat-17" });
      let count = 0;
      for await (const _ of session.stream({ code: "1", id: ID })) {
        count += 1;
        await new Promise((resolve) => setTimeout(resolve, 300));
      }
      assert.equal(count, 2);
    },
    { timeoutMs: 150 },
  );
});
