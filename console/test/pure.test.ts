// The parts that have no page: tables, escape sequences, metrics, streams, and what is kept of an execution.

import { deepEqual, equal, ok } from "node:assert/strict";
import { test } from "node:test";
import { pieces } from "../src/ansi";
import { parse as table } from "../src/csv";
import { bytes, span } from "../src/format";
import { between, buckets, parse, quantile, sum } from "../src/metrics";
import { Events } from "../src/sse";

test("a table is read with its quotes, line ends and separators", () => {
  deepEqual(table('a,b\r\n"x, y","say ""hi"""\n').rows, [["a", "b"], ["x, y", 'say "hi"']]);
  deepEqual(table("a;b\n1;2").rows, [["a", "b"], ["1", "2"]]);
  deepEqual(table("a\tb\n\t").rows, [["a", "b"], ["", ""]]);
  deepEqual(table('"one\ntwo",3').rows, [["one\ntwo", "3"]]);
  deepEqual(table("\ufeffa,b\n").rows, [["a", "b"]]);
  deepEqual(table("").rows, []);
  deepEqual(table('"never closed').rows, [["never closed"]]);
});

test("a long table is cut, and says so", () => {
  const long = table("x\n".repeat(50), 20);
  equal(long.rows.length, 20);
  ok(long.isCut);
  ok(!table("x\n".repeat(20), 20).isCut);
});

test("colours and weights are looks, and all other sequences are nothing", () => {
  deepEqual(pieces("a\x1b[1;31mb\x1b[0mc"), [{ text: "a", look: "" }, { text: "b", look: "fg-1 bold" }, { text: "c", look: "" }]);
  deepEqual(pieces("\x1b[2J\x1b[Hx\x1b]0;title\x07y\x07z"), [{ text: "x", look: "" }, { text: "yz", look: "" }]);
  deepEqual(pieces("\x1b[38;5;9mr\x1b[39m\x1b[38;2;1;2;3mn"), [{ text: "r", look: "fg-1" }, { text: "n", look: "" }]);
  deepEqual(pieces("10 %\r20 %\r\n<b>"), [{ text: "20 %\n<b>", look: "" }]);
  deepEqual(pieces("\x1b[38;2"), [{ text: "[38;2", look: "" }]);
});

const TEXT = `# HELP x y
http_total{code="200",path="a\\"b\\\\"} 3
http_total{code="500"} 2 1700000000
t_bucket{pool="a",le="0.1"} 2
t_bucket{pool="a",le="1"} 4
t_bucket{pool="a",le="+Inf"} 4
t_bucket{pool="b",le="0.1"} 0
t_bucket{pool="b",le="1"} 0
t_bucket{pool="b",le="+Inf"} 0
no number here
`;

test("metrics are read with their labels", () => {
  const samples = parse(TEXT);
  equal(samples[0]!.labels["path"], 'a"b\\');
  equal(sum(samples, "http_total"), 5);
  equal(sum(samples, "http_total", { code: /^5/ }), 2);
  equal(sum(samples, "none"), 0);
});

test("quantiles are interpolated over all series", () => {
  const now = buckets(parse(TEXT), "t");
  equal(quantile(now, 0.5), 0.1);
  equal(quantile(now, 0.75), 0.55);
  equal(quantile(new Map([[1, 0], [Infinity, 0]]), 0.5), null);
  // What is beyond the last bound is at least that bound.
  equal(quantile(new Map([[1, 1], [Infinity, 10]]), 0.99), 1);
  const before = new Map([[0.1, 2], [1, 2], [Infinity, 2]]);
  deepEqual([...between(before, now).values()], [0, 2, 2]);
  deepEqual(between(new Map([[1, 9]]), now), now);
});

test("events are whole, however they are cut", () => {
  const text = ': hi\nevent: stdout\ndata: {"text":"a\\n"}\nid: 2\n\ndata: one\ndata: two\r\n\r\nevent: x\n\n';
  const wanted = [
    { event: "stdout", data: '{"text":"a\\n"}', id: "2" },
    { event: "message", data: "one\ntwo", id: "2" },
  ];
  for (let size = 1; size <= text.length; size += 1) {
    const parser = new Events();
    const found = [];
    for (let at = 0; at < text.length; at += size) found.push(...parser.push(text.slice(at, at + size)));
    deepEqual(found, wanted, `pieces of ${size}`);
  }
});

test("sizes and times are said in words that fit", () => {
  equal(bytes(0), "0 B");
  equal(bytes(1536), "1.5 KiB");
  equal(bytes(2 ** 30), "1.0 GiB");
  equal(bytes(null), "–");
  equal(span(0.00042), "420 µs");
  equal(span(0.0042), "4.2 ms");
  equal(span(75), "1 min 15 s");
  equal(span(7200), "2 h");
  equal(span(90000), "1 d 1 h");
});
