import assert from "node:assert/strict";
import { test } from "node:test";
import { EventParser } from "../dist/sse.js";

const bytes = (text: string) => new TextEncoder().encode(text);

test("fields, comments, several lines of data, and what is not known", () => {
  const text = ": hello\n\nevent: stdout\ndata: {\ndata:  }\nretry: 5\nid: 7\nodd\n\nid: 8\n\ndata: x\n\n";
  assert.deepEqual(new EventParser().push(bytes(text)), [
    { id: "7", name: "stdout", data: "{\n }" },
    { id: null, name: "message", data: "x" },
  ]);
});

test("pieces are cut anywhere, also in the middle of characters and line ends", () => {
  for (const end of ["\n", "\r\n", "\r"]) {
    const text = ["\ufeffevent: stdout", "data: äöü€😀", "id: 1", "", "data: two", "", ""].join(end);
    const whole = bytes(text);
    for (let length = 1; length <= whole.length; length += 1) {
      const parser = new EventParser();
      const found = [];
      for (let at = 0; at < whole.length; at += length) found.push(...parser.push(whole.subarray(at, at + length)));
      const wanted = [
        { id: "1", name: "stdout", data: "äöü€😀" },
        { id: null, name: "message", data: "two" },
      ];
      assert.deepEqual(found, wanted, `${JSON.stringify(end)} in pieces of ${length}`);
    }
  }
});

test("what is not whole is no event", () => {
  assert.deepEqual(new EventParser().push(bytes("data: x\n")), []);
});
