import assert from "node:assert/strict";
import { test } from "node:test";
import { ExhaustedError, NotFoundError, Sandpool, SandpoolError, SessionLostError } from "../dist/index.js";
import { fromBase64, toBase64, uuid } from "../dist/bytes.js";
import { retryAfter } from "../dist/errors.js";
import { ID, inTurn, opened, record, refuse, say, serving, SESSION } from "./server.js";

const EXECUTIONS = `${SESSION}/executions`;

test("the environment says where and as whom, and an option says it louder", async () => {
  const given: string[] = [];
  const fetch: typeof globalThis.fetch = async (input, init) => {
    given.push(`${String(input)} ${new Headers(init?.headers).get("authorization")}`);
    return Response.json({ value: [] });
  };
  process.env["SANDPOOL_ENDPOINT"] = "https://there.example/base/";
  process.env["SANDPOOL_TOKEN"] = "t1";
  await new Sandpool({ fetch }).pools();
  await new Sandpool({ fetch, endpoint: "http://here.example", token: async () => "t2" }).pools();
  assert.deepEqual(given, ["https://there.example/base/pools Bearer t1", "http://here.example/pools Bearer t2"]);
  delete process.env["SANDPOOL_TOKEN"];
  assert.throws(() => new Sandpool(), /SANDPOOL_TOKEN/);
  delete process.env["SANDPOOL_ENDPOINT"];
  assert.throws(() => new Sandpool(), /SANDPOOL_ENDPOINT/);
});

test("a session is ended when its block is left, unless it is to be kept", async () => {
  const answers = { [`PUT ${SESSION}`]: opened, [`DELETE ${SESSION}`]: say(null, 200) };
  await serving(answers, async (sandpool, asked) => {
    const secrets = [{ name: "KEY", value: "12345678", hosts: ["api.example.com"] }];
    const session = await sandpool.session("python", { id: "chat-17", env: { A: "b" }, secrets, egress: { mode: "none" } });
    assert.deepEqual(JSON.parse(asked[0]!.body.toString()), { env: { A: "b" }, secrets, egress: { mode: "none" } });
    assert.deepEqual([session.isNew, session.id, session.pool], [true, "chat-17", "python"]);
    const kept = await sandpool.session("python", { id: "chat-17", keep: true });
    await kept[Symbol.asyncDispose]();
    assert.equal(asked.length, 2);
    await session[Symbol.asyncDispose]();
    assert.equal(asked[2]!.method, "DELETE");
    await kept.end();
    assert.equal(asked[3]!.method, "DELETE");
  });
});

test("ending what has ended is no error, and other refusals are", async () => {
  const gone = inTurn(refuse(404, "NoSessionFoundError"), refuse(410, "SessionLost"), refuse(403, "Forbidden"));
  await serving({ [`PUT ${SESSION}`]: opened, [`DELETE ${SESSION}`]: gone }, async (sandpool) => {
    const session = await sandpool.session("python", { id: "chat-17" });
    await session.close();
    await session.close();
    await assert.rejects(session.close(), { status: 403, code: "Forbidden" });
  });
});

test("a name is one segment, and no path", async () => {
  await serving({}, async (sandpool, asked) => {
    await assert.rejects(sandpool.session("python", { id: "chat/17?x" }), NotFoundError);
    assert.equal(asked[0]!.url, "/pools/python/sessions/chat%2F17%3Fx");
    for (const bad of ["", ".", ".."]) await assert.rejects(sandpool.session(bad), TypeError);
    assert.throws(() => sandpool.pool(".."), TypeError);
  });
});

test("a name is made for a session that has none", async () => {
  await serving({}, async (sandpool, asked) => {
    await assert.rejects(sandpool.session("python"), NotFoundError);
    assert.match(asked[0]!.url, /sessions\/session-[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/);
  });
});

test("a refusal with Retry-After is asked again, under the same id", async () => {
  const again = { "Retry-After": "0" };
  const answers = {
    [`PUT ${SESSION}`]: opened,
    [`POST ${EXECUTIONS}`]: inTurn(refuse(429, "ExecutionQueueFull", again), refuse(503, "ServiceUnavailable", again), say(record())),
  };
  await serving(answers, async (sandpool, asked) => {
    const session = await sandpool.session("python", { id: "chat-17" });
    assert.equal((await session.run("1")).outcome, "succeeded");
    const ids = asked.slice(1).map((one) => JSON.parse(one.body.toString()).id);
    assert.equal(ids.length, 3);
    assert.match(ids[0], /^[0-9a-f-]{36}$/);
    assert.deepEqual(new Set(ids).size, 1);
    await session.run("2");
    assert.notEqual(JSON.parse(asked[4]!.body.toString()).id, ids[0]);
  });
});

test("asking again ends, and is not begun without Retry-After, after a long one, or for other refusals", async () => {
  for (const [status, headers, times] of [
    [429, { "Retry-After": "0" }, 4],
    [503, { "Retry-After": "31" }, 1],
    [503, {}, 1],
    [500, { "Retry-After": "0" }, 1],
    [409, { "Retry-After": "0" }, 1],
  ] as const) {
    await serving({ "GET /pools": refuse(status, "Refused", headers) }, async (sandpool, asked) => {
      await assert.rejects(sandpool.pools(), { status, code: "Refused" });
      assert.equal(asked.length, times, `${status} ${JSON.stringify(headers)}`);
    });
  }
});

test("errors have their class, and say what the server said", async () => {
  for (const [status, kind] of [
    [400, SandpoolError],
    [404, NotFoundError],
    [410, SessionLostError],
    [429, ExhaustedError],
  ] as const) {
    await serving({ "GET /pools/python": refuse(status, "Some", { "Retry-After": "60" }) }, async (sandpool) => {
      const error = await sandpool.pool("python").then(() => assert.fail(), (error: unknown) => error as SandpoolError);
      assert.equal(error.constructor, kind);
      assert.equal(error.name, kind.name);
      assert.equal(error.message, "It is Some.");
      const { code, target, retryAfterSeconds, traceId } = error;
      assert.deepEqual([error.status, code, target, retryAfterSeconds, traceId], [status, "Some", "stdin", 60, "00-1-2-01"]);
    });
  }
});

test("an answer that is none of the API's is told as it is", async () => {
  const page = (status: number) => (_: unknown, response: import("node:http").ServerResponse) => {
    response.writeHead(status).end("<html>");
  };
  await serving({ "GET /pools": inTurn(page(502), page(200)) }, async (sandpool) => {
    await assert.rejects(sandpool.pools(), { status: 502, code: "Http502" });
    await assert.rejects(sandpool.pools(), { status: 200, code: "StrangeAnswer" });
  });
});

test("no server, and one that is silent", async () => {
  const nobody = new Sandpool({ endpoint: "http://127.0.0.1:1", token: "x" });
  await assert.rejects(nobody.pools(), (error) => {
    assert(error instanceof SandpoolError);
    assert.deepEqual([error.status, error.code], [0, "ConnectionFailed"]);
    assert.match(error.message, /127\.0\.0\.1:1 failed: .*(ECONNREFUSED|bad port)/);
    return true;
  });
  const silent = { "GET /pools": () => {} };
  await serving(silent, (sandpool) => assert.rejects(sandpool.pools(), { status: 0, code: "NoAnswerInTime" }), { timeoutMs: 50 });
});

test("an execution that goes on is waited for, through a broken connection", async () => {
  const running = record({ state: "running", outcome: null });
  const answers = {
    [`PUT ${SESSION}`]: opened,
    [`POST ${EXECUTIONS}`]: say(running, 202),
    [`GET ${EXECUTIONS}/${ID}`]: inTurn(say(running), (_, response) => void response.destroy(), say(record({ stdout: "hi\n" }))),
  };
  await serving(answers, async (sandpool, asked) => {
    const session = await sandpool.session("python", { id: "chat-17" });
    assert.equal((await session.run("1", { id: ID })).stdout, "hi\n");
    assert.deepEqual(
      asked.slice(2).map((one) => one.url),
      Array(3).fill(`${EXECUTIONS}/${ID}?wait=30`),
    );
  });
});

test("an execution whose request breaks off is looked for, and not started again", async () => {
  const breaks = (_: unknown, response: import("node:http").ServerResponse) => void response.destroy();
  const answers = {
    [`PUT ${SESSION}`]: opened,
    [`POST ${EXECUTIONS}`]: breaks,
    [`GET ${EXECUTIONS}/${ID}`]: inTurn(say(record({ stdout: "hi\n" })), refuse(404, "ExecutionNotFound")),
  };
  await serving(answers, async (sandpool, asked) => {
    const session = await sandpool.session("python", { id: "chat-17" });
    assert.equal((await session.run("1", { id: ID })).stdout, "hi\n");
    await assert.rejects(session.run("1", { id: ID }), { code: "ConnectionFailed" });
    assert.equal(asked.filter((one) => one.method === "POST").length, 2);
  });
});

test("commands: a line, a program, input as text and as bytes", async () => {
  const answers = { [`PUT ${SESSION}`]: opened, [`POST ${EXECUTIONS}`]: say(record({ outcome: "exited", exitCode: 3 })) };
  await serving(answers, async (sandpool, asked) => {
    const session = await sandpool.session("python", { id: "chat-17" });
    const ended = await session.command("exit 3", { timeoutSeconds: 5, outputLimitBytes: 10 });
    assert.deepEqual([ended.exitCode, ended.succeeded], [3, false]);
    await session.command(["cat", "-"], { stdin: "text" });
    await session.command(["cat"], { stdin: Uint8Array.of(255, 0) });
    const bodies = asked.slice(1).map((one) => JSON.parse(one.body.toString()));
    assert.deepEqual([bodies[0].command, bodies[0].timeoutSeconds, bodies[0].outputLimitBytes], ["exit 3", 5, 10]);
    assert.deepEqual([bodies[1].argv, bodies[1].stdin], [["cat", "-"], "text"]);
    assert.deepEqual(bodies[2].stdin, { base64: "/wA=" });
  });
});

test("aborting interrupts the execution, as soon as it is there", async () => {
  const answers = {
    [`PUT ${SESSION}`]: opened,
    [`POST ${EXECUTIONS}`]: () => {},
    [`POST ${EXECUTIONS}/${ID}/stop`]: inTurn(refuse(404, "ExecutionNotFound"), say(null)),
  };
  await serving(answers, async (sandpool, asked) => {
    const session = await sandpool.session("python", { id: "chat-17" });
    const controller = new AbortController();
    setTimeout(() => controller.abort(new Error("enough")), 50);
    await assert.rejects(session.run("while True: pass", { id: ID, signal: controller.signal }), /enough/);
    assert.deepEqual(
      asked.slice(2).map((one) => [one.url, one.body.toString()]),
      Array(2).fill([`${EXECUTIONS}/${ID}/stop`, '{"how":"interrupt"}']),
    );
    const before = asked.length;
    await assert.rejects(session.run("1", { signal: controller.signal }), /enough/);
    assert.equal(asked.length, before, "what is aborted before it begins asks for nothing");
  });
});

test("aborting the wait for an execution does not end it", async () => {
  const running = record({ state: "running", outcome: null });
  const answers = {
    [`PUT ${SESSION}`]: opened,
    [`POST ${EXECUTIONS}`]: say(running, 202),
    [`GET ${EXECUTIONS}/${ID}`]: () => {},
  };
  await serving(answers, async (sandpool, asked) => {
    const session = await sandpool.session("python", { id: "chat-17" });
    const started = await session.start({ code: "1", id: ID });
    assert.deepEqual([started.state, JSON.parse(asked[1]!.body.toString()).waitSeconds], ["running", 0]);
    await assert.rejects(started.wait({ signal: AbortSignal.timeout(50) }), { name: "TimeoutError" });
    assert.equal(asked.length, 3);
  });
});

test("figures are bytes", async () => {
  const shown = (type: string, more: object) => ({ text: "x", forms: [{ type, ...more }], dropped: [] });
  const displays = [shown("image/png", { base64: "iVBO" }), shown("image/svg+xml", { text: "<svg/>" })];
  const answers = {
    [`PUT ${SESSION}`]: opened,
    [`GET ${EXECUTIONS}/${ID}`]: say(record({ displays, result: shown("image/png", { base64: "/w==" }) })),
  };
  await serving(answers, async (sandpool) => {
    const execution = await (await sandpool.session("python", { id: "chat-17" })).execution(ID);
    assert.deepEqual(execution.images(), [Uint8Array.of(0x89, 0x50, 0x4e), Uint8Array.of(255)]);
    assert.deepEqual(execution.images("image/svg+xml"), [new TextEncoder().encode("<svg/>")]);
    assert.deepEqual(execution.images("text/html"), []);
  });
});

test("files: names, absolute paths, pages, bytes", async () => {
  const file = { name: "a b", path: "/mnt/data/d/a b", type: "file", size: 2, modifiedAt: null };
  const answers = {
    [`PUT ${SESSION}`]: opened,
    [`PUT ${SESSION}/files/d/a%20b`]: say(file),
    [`GET ${SESSION}/files/-`]: (_: unknown, response: import("node:http").ServerResponse) => void response.end(Buffer.of(0, 255)),
    [`DELETE ${SESSION}/files/d`]: say(null),
    [`GET ${SESSION}/files`]: inTurn(say({ value: [file], next: "d/a b" }), say({ value: [file], next: null })),
  };
  await serving(answers, async (sandpool, asked) => {
    const { files } = await sandpool.session("python", { id: "chat-17" });
    for (const data of ["ä", new TextEncoder().encode("ä"), new TextEncoder().encode("ä").buffer, new Blob(["ä"])]) {
      assert.deepEqual(await files.write("./d//a b", data), file);
      assert.equal(asked.at(-1)!.body.toString(), "ä");
    }
    assert.deepEqual(await files.read("/tmp/x y"), Uint8Array.of(0, 255));
    assert.equal(asked.at(-1)!.url, `${SESSION}/files/-?absolute=%2Ftmp%2Fx+y`);
    await files.remove("d/");
    assert.equal((await files.list("d", { recursive: true })).length, 2);
    assert.equal(asked.at(-2)!.url, `${SESSION}/files?path=d&recursive=true`);
    assert.equal(asked.at(-1)!.url, `${SESSION}/files?path=d&recursive=true&after=d%2Fa+b`);
    for (const bad of ["", ".", "../executions", "a/../../b"]) assert.throws(() => files.read(bad), TypeError);
  });
});

test("input is sent once, in parts, and ended apart from that", async () => {
  const path = `${EXECUTIONS}/${ID}/input`;
  const answers = { [`PUT ${SESSION}`]: opened, [`POST ${path}`]: inTurn(say(null), say(null), refuse(503, "ServiceUnavailable", { "Retry-After": "0" })) };
  await serving(answers, async (sandpool, asked) => {
    const session = await sandpool.session("python", { id: "chat-17" });
    await session.input(ID, new Uint8Array((16 << 20) + 1));
    assert.deepEqual(asked.slice(1).map((one) => one.body.length), [16 << 20, 1]);
    await session.input(ID, "");
    assert.equal(asked.length, 3);
    await assert.rejects(session.endInput(ID), { status: 503 });
    assert.deepEqual([asked.length, asked[3]!.body.length], [4, 0]);
  });
});

test("Retry-After is seconds or a date", () => {
  const read = (value: string) => retryAfter(new Headers({ "Retry-After": value }));
  assert.equal(read(" 7 "), 7);
  assert.equal(read("soon"), null);
  assert.equal(read("Wed, 21 Oct 2015 07:28:00 GMT"), 0);
  const later = read(new Date(Date.now() + 5000).toUTCString())!;
  assert(later > 3 && later <= 5, String(later));
});

test("base64 both ways, and ids", () => {
  const bytes = Uint8Array.from({ length: 70_001 }, (_, at) => at % 251);
  assert.equal(toBase64(bytes), Buffer.from(bytes).toString("base64"));
  assert.deepEqual(fromBase64(toBase64(bytes)), bytes);
  assert.match(uuid(), /^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/);
});
