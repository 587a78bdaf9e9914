//! Node: what section 7.3 of the wire reference says, and what we do better.

use crate::Act::{Code, Fresh, Interrupted, Timed};
use crate::Sees::{Ends, Errs, Is, Lost, NoValue, Part, Quiet, Raised, Says, Text, Value};
use crate::{Case, Step};

/// A line for each generator.
pub(crate) const DRAWS: &str = "console.log(Math.random()); console.log(crypto.randomUUID()); \
                                console.log(require('crypto').randomBytes(8).toString('hex'))";

pub(crate) fn cases() -> Vec<Case> {
    let case = |name, steps| Case { name, session: "node", steps };
    let alone = |name, steps| Case { name, session: name, steps };
    vec![
        case(
            "values",
            &[
                Step(Code("42"), &[Value("42", Some("42")), Says(""), Quiet]),
                Step(Code("1.5"), &[Value("1.5", Some("1.5"))]),
                Step(Code("true"), &[Value("true", Some("true"))]),
                Step(Code("'abc'"), &[Value("'abc'", Some("\"abc\""))]),
                Step(Code("null"), &[Value("null", Some("null"))]),
                Step(Code("undefined"), &[NoValue]),
                Step(Code("NaN"), &[Value("NaN", None)]),
                Step(
                    Code("10n ** 30n"),
                    &[Value("1000000000000000000000000000000n", Some("1000000000000000000000000000000"))],
                ),
                Step(Code("'é😀'"), &[Value("'é😀'", Some("\"é😀\""))]),
                Step(
                    Code("({a: 1, b: [1, 'two', {c: null}]})"),
                    &[Value("{ a: 1, b: [ 1, 'two', { c: null } ] }", None)],
                ),
                Step(Code("{ a: 1 }"), &[Text("{ a: 1 }")]),
                Step(Code("[1, 2, 3].map(n => n * 2)"), &[Value("[ 2, 4, 6 ]", None)]),
                Step(Code("new Map([[1, { a: 'b' }]])"), &[Text("Map(1) { 1 => { a: 'b' } }")]),
                Step(Code("function f() {}; f"), &[Text("[Function: f]")]),
                Step(Code("Symbol('s')"), &[Text("Symbol(s)")]),
                Step(Code("const unused = 1;"), &[NoValue]),
                Step(Code("console.log('x')"), &[NoValue, Says("x\n")]),
                Step(Code("Promise.resolve(8)"), &[Value("8", Some("8"))]),
                Step(Code(""), &[NoValue]),
            ],
        ),
        case(
            "state",
            &[
                Step(Code("let a = 20; const b = 1; var c = 1; d = 2; function e() { return a + b + c + d }"), &[]),
                Step(Code("a += 18; e()"), &[Value("42", Some("42"))]),
                Step(Fresh("typeof a"), &[Text("'undefined'")]),
                Step(
                    Fresh("typeof new FormData() + typeof ReadableStream + typeof WebSocket"),
                    &[Text("'objectfunctionfunction'")],
                ),
                Step(Code("a"), &[Text("38")]),
            ],
        ),
        case(
            "declared_again",
            &[
                Step(
                    Code(
                        "const k = 1; let l = 1; class C { one() { return 1 } }; var v = 1; function f() { return 1 }",
                    ),
                    &[],
                ),
                Step(
                    Code(
                        "const k = 2; let l = 2; class C { one() { return 2 } }; var v = 2; function f() { return 2 }",
                    ),
                    &[],
                ),
                Step(Code("[k, l, new C().one(), v, f()]"), &[Text("[ 2, 2, 2, 2, 2 ]")]),
                Step(Code("var k = 3; k"), &[Text("3")]),
                Step(Code("let k = 4; k"), &[Text("4")]),
                Step(Code("const { x, y: [z] } = { x: 1, y: [2] }; [x, z]"), &[Text("[ 1, 2 ]")]),
                Step(Code("const { x, y: [z] } = { x: 3, y: [4] }; [x, z]"), &[Text("[ 3, 4 ]")]),
                Step(
                    Code("const fs = require('fs'); const path = require('path'); typeof fs.readFileSync"),
                    &[Text("'function'")],
                ),
                Step(
                    Code("const fs = require('fs'); const path = require('path'); path.join('a', 'b')"),
                    &[Text("'a/b'")],
                ),
            ],
        ),
        case(
            "top_level_await",
            &[
                Step(Code("const w = await new Promise(r => setTimeout(r, 20, 'late')); w"), &[Text("'late'")]),
                Step(Code("w + '!'"), &[Text("'late!'")]),
                Step(Code("for await (const n of [1, 2]) console.log(n)"), &[Says("1\n2\n")]),
                Step(Code("await Promise.reject(new TypeError('no'))"), &[Ends("Raised"), Raised("TypeError", "no")]),
            ],
        ),
        case(
            "streams",
            &[
                Step(
                    Code(
                        "console.log('%s is %d', 'x', 1, {a: [1]}); console.error('bad'); console.warn('hm'); console.info('i')",
                    ),
                    &[Says("x is 1 { a: [ 1 ] }\ni\n"), Errs("bad\nhm\n")],
                ),
                Step(Code("process.stdout.write('a'); process.stderr.write('b'); 1"), &[Says("a"), Errs("b")]),
                Step(Code("console.table([{ a: 1 }])"), &[Part("(index)")]),
                Step(
                    Code(
                        "require('child_process').execSync('head -c 700000 /dev/zero | tr \\\\0 x', { stdio: 'inherit' }); 1",
                    ),
                    &[
                        Text("1"),
                        Quiet,
                        Is(|run| if run.stdout.len() == 700_000 { Ok(()) } else { Err(run.stdout.len().to_string()) }),
                    ],
                ),
                Step(
                    Code("console.log('x'.repeat(50_000_000))"),
                    &[Is(|run| {
                        let is_cut = run.stdout.len() <= 1 << 20 && run.dropped.0 > 48_000_000;
                        if is_cut { Ok(()) } else { Err(format!("{} and {:?}", run.stdout.len(), run.dropped)) }
                    })],
                ),
            ],
        ),
        case(
            "errors",
            &[
                Step(Code("null.x"), &[Ends("Raised"), Raised("TypeError", "null"), Errs("Uncaught TypeError")]),
                Step(Code("throw new RangeError('far')"), &[Ends("Raised"), Raised("RangeError", "far")]),
                Step(Code("throw 'text'"), &[Ends("Raised"), Errs("Uncaught 'text'")]),
                Step(Code("let = ;"), &[Ends("Raised"), Raised("SyntaxError", "")]),
                Step(Code("nowhere"), &[Ends("Raised"), Raised("ReferenceError", "nowhere is not defined")]),
                Step(Code("Promise.reject(new Error('unheard')); 1"), &[Ends("Raised"), Raised("Error", "unheard")]),
                Step(
                    Code(
                        "setTimeout(() => { throw new Error('late') }, 5); await new Promise(r => setTimeout(r, 200))",
                    ),
                    &[Ends("Raised"), Raised("Error", "late")],
                ),
                Step(Code("a"), &[Text("38")]),
            ],
        ),
        case(
            "modules",
            &[
                Step(Code("const _l = require('lodash'); _l.chunk([1, 2, 3], 2)"), &[Text("[ [ 1, 2 ], [ 3 ] ]")]),
                Step(Code("import _ from 'lodash'; _.sum([1, 2])"), &[Text("3")]),
                Step(Code("import { readFileSync as read } from 'node:fs'; typeof read"), &[Text("'function'")]),
                Step(Code("import * as os from 'os'; typeof os.cpus"), &[Text("'function'")]),
                Step(
                    Code("const m = await import('dayjs'); m.default('2024-02-03').format('YYYY/MM/DD')"),
                    &[Text("'2024/02/03'")],
                ),
                Step(Code("const { z } = require('zod'); z.number().parse(7)"), &[Text("7")]),
                Step(Code("(await import('marked')).marked.parse('*x*').trim()"), &[Text("'<p><em>x</em></p>'")]),
                Step(
                    Code("require('fs').writeFileSync('own.js', 'exports.seven = 7'); require('./own').seven"),
                    &[Text("7")],
                ),
                Step(
                    Code("require('no-such-package')"),
                    &[Ends("Raised"), Raised("Error", "Cannot find module 'no-such-package'")],
                ),
                Step(Code("process.cwd()"), &[Text("'/mnt/data'")]),
            ],
        ),
        case(
            "interrupt_keeps_state",
            &[
                Step(Code("let kept = 7"), &[]),
                Step(Interrupted("console.log('go'); for (;;);", "go"), &[Ends("Cancelled"), Says("go\n")]),
                Step(Code("kept"), &[Text("7")]),
                Step(
                    Interrupted("console.log('go'); await new Promise(r => setTimeout(r, 100000))", "go"),
                    &[Ends("Cancelled")],
                ),
                Step(Code("kept"), &[Text("7")]),
                Step(Interrupted("console.log('go'); await new Promise(() => {})", "go"), &[Ends("Cancelled")]),
                Step(Code("kept"), &[Text("7")]),
                Step(
                    Interrupted("console.log('go'); require('child_process').execSync('sleep 1000')", "go"),
                    &[Ends("Cancelled")],
                ),
                Step(Code("kept"), &[Text("7")]),
            ],
        ),
        case(
            "an_interrupt_finds_code_wherever_it_loops",
            &[
                Step(Interrupted("await null; console.log('go'); for (;;);", "go"), &[Ends("Cancelled")]),
                Step(Code("kept"), &[Text("7")]),
                Step(
                    Interrupted("await new Promise(r => setTimeout(r, 20)); console.log('go'); for (;;);", "go"),
                    &[Ends("Cancelled")],
                ),
                Step(Code("kept"), &[Text("7")]),
                Step(
                    Interrupted("({ [require('util').inspect.custom]() { console.log('go'); for (;;); } })", "go"),
                    &[Ends("Cancelled")],
                ),
                Step(Code("kept"), &[Text("7")]),
                // What it waited for is garbage now, and the inspector has a word to say when it is collected.
                Step(Interrupted("console.log('go'); await new Promise(() => {})", "go"), &[Ends("Cancelled")]),
                Step(
                    Code(
                        "require('v8').setFlagsFromString('--expose-gc'); require('vm').runInNewContext('gc')(); kept",
                    ),
                    &[Text("7")],
                ),
                Step(Code("kept"), &[Text("7")]),
                Step(
                    Interrupted("for (;;) { try { console.log('go'); for (;;); } catch {} }", "go"),
                    &[Ends("Cancelled")],
                ),
                Step(Code("console.log('still'); kept"), &[Text("7"), Says("still\n")]),
                Step(Code("for (let n = 0; n < 3; n++) await new Promise(r => setTimeout(r, 5)); kept"), &[Text("7")]),
            ],
        ),
        case(
            "time_out",
            &[
                Step(Timed("for (;;);", 1), &[Ends("TimedOut")]),
                Step(Code("kept"), &[Text("7")]),
                Step(
                    Timed(
                        "const child = require('child_process').spawn('sleep', ['3001']); await new Promise(() => {})",
                        1,
                    ),
                    &[Ends("TimedOut")],
                ),
                Step(
                    Code(
                        "await new Promise(r => child.exitCode === null && child.signalCode === null ? child.on('exit', r) : r()); [kept, child.signalCode]",
                    ),
                    &[Text("[ 7, 'SIGKILL' ]")],
                ),
            ],
        ),
        case(
            "exit",
            &[
                Step(Code("process.exit(3)"), &[Ends("Raised")]),
                Step(Code("process.exit(0)"), &[Ends("Succeeded")]),
                Step(Code("kept"), &[Text("7")]),
            ],
        ),
        case(
            "timers_and_children",
            &[
                Step(
                    Code("setTimeout(() => console.log('tick'), 10); await new Promise(r => setTimeout(r, 300)); 1"),
                    &[Says("tick\n")],
                ),
                Step(Code("setTimeout(() => { globalThis.later = 5 }, 50); 1"), &[Text("1")]),
                Step(Code("await new Promise(r => setTimeout(r, 300)); later"), &[Text("5")]),
                Step(Code("require('child_process').execSync('echo hi').toString()"), &[Text("'hi\\n'")]),
                Step(
                    Code(
                        "const { promisify } = require('util'); (await promisify(require('child_process').exec)('echo $SHELL')).stdout",
                    ),
                    &[Text("'/bin/bash\\n'")],
                ),
                Step(
                    Code("require('child_process').execSync('echo out; echo err >&2', { stdio: 'inherit' }); 1"),
                    &[Says("out\n"), Errs("err\n")],
                ),
                Step(
                    Code(
                        "const { Worker } = require('worker_threads'); await new Promise(r => new Worker(\"require('worker_threads').parentPort.postMessage(6*7)\", { eval: true }).on('message', r))",
                    ),
                    &[Text("42")],
                ),
            ],
        ),
        case(
            "more_code",
            &[
                Step(Interrupted("for (;;) console.log('go');", "go"), &[Ends("Cancelled")]),
                Step(
                    Interrupted("console.log('go'); for (;;) await new Promise(r => setTimeout(r, 1));", "go"),
                    &[Ends("Cancelled")],
                ),
                Step(Code("require('fs').readFileSync(0, 'utf8')"), &[Text("''")]),
                Step(
                    Code(
                        "const lines = require('readline').createInterface({ input: process.stdin }); await new Promise(r => lines.on('close', r)); kept",
                    ),
                    &[Text("7")],
                ),
                Step(Code("async function main() { return 'ran' }\nmain()"), &[Text("'ran'")]),
                Step(
                    Code(
                        "require('fs').writeFileSync('m.mjs', 'export const six = 6; export default 7'); (await import('./m.mjs')).six",
                    ),
                    &[Text("6")],
                ),
                Step(Code("import seven, { six } from './m.mjs'; [seven, six]"), &[Text("[ 7, 6 ]")]),
                Step(
                    Code("class A { #p = 1; get p() { return this.#p } }\nclass B extends A {}\nnew B().p"),
                    &[Text("1")],
                ),
                Step(Code("`${[1, 2].map(n => `<${n}>`)}`.split(/,/g).length / 2"), &[Text("1")]),
                Step(Code("let s = 1; { const s = 2; let t = s } s"), &[Text("1")]),
                Step(Code("function* g() { yield 1 }\n[...g()]"), &[Text("[ 1 ]")]),
                Step(
                    Code("// const in a comment\nconst s = 'const x = 1; import y from \"z\"'; s.length"),
                    &[Text("30")],
                ),
                Step(Code("await fetch('http://127.0.0.1:9')"), &[Ends("Raised"), Raised("TypeError", "fetch failed")]),
            ],
        ),
        case(
            "replaced_by_the_user",
            &[
                Step(
                    Code(
                        "JSON.stringify = null; Object.keys = null; Array.prototype.map = null; console.log = null; 1",
                    ),
                    &[Text("1")],
                ),
                Step(Code("process.stdout.write('still'); kept"), &[Text("7"), Says("still")]),
                Step(
                    Code("globalThis.process = null; globalThis.Buffer = null; globalThis.Error = null; 2"),
                    &[Text("2")],
                ),
                Step(Code("null.x"), &[Ends("Raised"), Raised("TypeError", "null")]),
                Step(Code("kept"), &[Text("7")]),
            ],
        ),
        alone(
            "death",
            &[
                Step(Code("let gone = 1; gone"), &[Text("1")]),
                Step(Code("process.kill(process.pid, 'SIGKILL'); for (;;);"), &[Ends("Died"), Lost]),
                Step(Code("typeof gone"), &[Text("'undefined'")]),
                Step(Code("process.abort()"), &[Ends("Died"), Lost]),
                Step(Code("process.reallyExit(4)"), &[Ends("Died"), Lost]),
                Step(Code("require('fs').closeSync(5); 1"), &[Ends("Died"), Lost]),
                Step(Code("1 + 1"), &[Text("2")]),
                Step(Code("const hoard = []; for (;;) hoard.push(Buffer.alloc(50e6, 1))"), &[Ends("Died"), Lost]),
                Step(Code("1 + 1"), &[Text("2")]),
            ],
        ),
    ]
}
