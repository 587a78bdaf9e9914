//! Python: what section 7.2 of the wire reference says, and what we do better.

use crate::Act::{Code, Fresh, Interrupted, Timed};
use crate::Sees::{Ends, Errs, Form, Images, Is, Lost, NoValue, Part, Quiet, Raised, Says, Text, Value};
use crate::{Case, Step};

/// A line for each generator.
pub(crate) const DRAWS: &str = "import random, uuid, secrets, numpy, tempfile\n\
                                print(random.random())\n\
                                print(numpy.random.rand())\n\
                                print(numpy.random.default_rng().random())\n\
                                print(uuid.uuid4())\n\
                                print(secrets.token_hex(8))\n\
                                print(tempfile.mktemp())";

/// Cells in which a shorter way through IPython could show. One in which it does is not among them: when a value's own
/// `__repr__` raises, the first traceback of that cell can lack the line above the one that raised.
pub(crate) const ALIKE: &[&str] = &[
    "1",
    "_",
    "print(1)",
    "x = 5",
    "x",
    "_, __, ___",
    "_i, _ii, _iii",
    "sorted(Out)",
    "In[2:4]",
    "1;",
    "1 # no end;",
    "'a;b'",
    "x = 3; x",
    "x = 3 ;",
    "None",
    "print(2)\n3",
    "print('a', end='')",
    "   4",
    "\n\n5",
    "# nothing",
    "",
    "if True:\n    6\n",
    "def f():\n    raise ValueError('no')\nf()",
    "f()",
    "1/0",
    "for",
    "'open",
    "x = (1,\n     2\n",
    "\tx",
    "'\\d'",
    "x is 1",
    "assert (1, 'x')",
    "import warnings; warnings.warn('careful')",
    "warnings.warn('careful')",
    "class A:\n    def __repr__(self): return 'A!'\nA()",
    "A(), [A()] * 30",
    "class C:\n    def _repr_html_(self): return '<b>c</b>'\n    def __repr__(self): return 'c'\nC()",
    "import pandas as pd; pd.DataFrame({'a': [1, 2]})",
    "class I(int): pass\nI(7)",
    "True, 1.5, 1e400, float('nan'), 10**30, 'é€😀', b'b', range(3)",
    "10**30",
    "-0.0",
    "'é€😀\\n'",
    "'long ' * 100",
    "{'b': 1, 'a': [1] * 50}",
    "%pwd",
    "pwd",
    "!echo hi",
    "y = !echo there",
    "y",
    "print?",
    "import asyncio\nawait asyncio.sleep(0, 7)",
    "async def g():\n    return 8\nawait g()",
    "%%capture kept\nprint(9)",
    "kept.stdout",
    "%history -n 2-3",
    "%timeit -n1 -r1 -q 1",
    "exit()",
    "raise SystemExit(3)",
    "raise KeyboardInterrupt",
    "import sys; print('e', file=sys.stderr)",
    "del x\nx",
    "from __future__ import annotations",
    "def h(a: NoSuch): return a\nh(1)",
    "with open('/nope') as file: pass",
    "get_ipython().execution_count",
    "__name__, __doc__",
    "import inspect\ndef source(): return 1\nprint(inspect.getsource(source))",
    "inspect.currentframe().f_code.co_filename[:16], inspect.currentframe().f_lineno",
    "x: int = 3\nx",
    "match x:\n    case 3: 'three'\n",
    "[print(i) for i in range(2)]",
    "\"\"\"text\"\"\"",
    "get_ipython().ast_node_interactivity = 'all'",
    "1\n2\n3",
    "get_ipython().ast_node_interactivity = 'last_expr'",
    "get_ipython().events.register('post_run_cell', after := lambda result: print('after', result.result))",
    "11",
    "get_ipython().events.unregister('post_run_cell', after)",
    "get_ipython().events.register('pre_run_cell', before := lambda info: print('before', info.raw_cell))",
    "12",
    "get_ipython().events.unregister('pre_run_cell', before)",
    "get_ipython().input_transformers_post.append(lambda lines: [line.replace('apple', '13') for line in lines])",
    "apple",
    "get_ipython().input_transformers_post.pop() and None",
    "get_ipython().display_formatter.formatters['text/plain'].for_type(int, lambda n, p, cycle: p.text(f'<{n}>')) and None",
    "14",
    "import builtins; builtins.print_was = print",
    "import sys; sys.displayhook.__class__.__name__",
    "x = 1\ny\u{2028} = 2",
    "1\n\x0c\n2",
    ">>> 1 + 1",
    "In [1]: 2",
];

pub(crate) fn cases() -> Vec<Case> {
    let mut cases = kept();
    cases.extend(stopped());
    cases.extend(harmed());
    cases
}

/// What a session gives and keeps.
fn kept() -> Vec<Case> {
    let case = |name, steps| Case { name, session: "python", steps };
    vec![
        // Whatever was run before there was a session.
        Case {
            name: "a_new_session_remembers_nothing",
            session: "newborn",
            steps: &[Step(
                Code(
                    "import linecache, sys\n\
                     ip = get_ipython(); kept = ip.history_manager\n\
                     print(len(In), Out, [_, __, _i, _ii], ip.execution_count, dict(kept.outputs), kept.exceptions)\n\
                     print([name for name in linecache.cache if 'ipython-input' in name][1:], hasattr(sys, 'last_value'))\n\
                     print(sorted({'np', 'pd', 'plt', 'x', 'i', 'numpy', '_f', '_exit_code'} & set(globals())))\n\
                     print(len(kept.db_input_cache), len(ip.compile._filename_map), ip.last_execution_result)",
                ),
                &[Says("2 {} ['', '', '', ''] 2 {} {}\n[] False\n[]\n1 1 None\n"), NoValue],
            )],
        },
        case(
            "values",
            &[
                Step(Code("42"), &[Value("42", Some("42")), Says(""), Quiet]),
                Step(Code("1.5"), &[Value("1.5", Some("1.5"))]),
                Step(Code("True"), &[Value("True", Some("true"))]),
                Step(Code("'abc'"), &[Value("'abc'", Some("\"abc\""))]),
                Step(Code("None"), &[Value("None", Some("null"))]),
                Step(Code("float('nan')"), &[Value("nan", None)]),
                Step(Code("float('-inf')"), &[Value("-inf", None)]),
                Step(Code("'nan'"), &[Value("'nan'", Some("\"nan\""))]),
                Step(
                    Code("10 ** 30 + 1"),
                    &[Value("1000000000000000000000000000001", Some("1000000000000000000000000000001"))],
                ),
                Step(Code("'é😀\\n'"), &[Value("'é😀\\n'", Some("\"\\u00e9\\ud83d\\ude00\\n\""))]),
                Step(Code("import numpy as np\nnp.float64(2.5)"), &[Value("np.float64(2.5)", Some("2.5"))]),
                Step(Code("np.arange(3)"), &[Value("array([0, 1, 2])", None)]),
                Step(Code("b'x', {1}, 3j, ..."), &[Value("(b'x', {1}, 3j, Ellipsis)", None)]),
                Step(Code("print('only')"), &[NoValue, Says("only\n")]),
                Step(Code("x = 5"), &[NoValue]),
                Step(Code("42;"), &[NoValue]),
                Step(Code("1\n2\n3"), &[Text("3")]),
                Step(Code(""), &[NoValue]),
                Step(Code("# nothing"), &[NoValue]),
                Step(Code("def f():\n    pass\nf()"), &[NoValue]),
                Step(
                    Code("[].append"),
                    &[Is(|run| match &run.result {
                        Some(rich)
                            if rich.text.starts_with("<built-in method append")
                                || rich.text.starts_with("<function list.append") =>
                        {
                            Ok(())
                        }
                        other => Err(format!("{other:?}")),
                    })],
                ),
            ],
        ),
        case(
            "long_values_are_wrapped",
            &[
                Step(
                    Code("{'name': 'x' * 40, 'list': [0, 1, 2], 'deep': {'a': ['b' * 40]}}"),
                    &[Text(
                        "{'name': 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx',\n \
                         'list': [0, 1, 2],\n \
                         'deep': {'a': ['bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb']}}",
                    )],
                ),
                Step(
                    Code("list(range(100))"),
                    &[Is(|run| {
                        let lines: Vec<String> = (0..100).map(|number| number.to_string()).collect();
                        let expected = format!("[{}]", lines.join(",\n "));
                        let is_same = run.result.as_ref().is_some_and(|rich| rich.text == expected);
                        if is_same { Ok(()) } else { Err("not one number a line".to_owned()) }
                    })],
                ),
                Step(
                    Code("import pkg_resources\n[(d.project_name, d.version) for d in pkg_resources.working_set]"),
                    &[Is(|run| {
                        let text = run.result.as_ref().map(|rich| rich.text.as_str()).unwrap_or_default();
                        let inner = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or_default();
                        let is_listing = inner.lines().count() > 30
                            && inner.lines().all(|line| line.trim().starts_with("('"))
                            && inner.contains("('numpy', '");
                        if is_listing { Ok(()) } else { Err(format!("not one distribution a line: {text:.200}")) }
                    })],
                ),
            ],
        ),
        case(
            "state",
            &[
                Step(Code("kept = 20\ndef twice(n):\n    return n * 2\nimport math"), &[NoValue]),
                Step(Code("twice(kept) + math.floor(2.5)"), &[Text("42")]),
                Step(Code("_ + 1"), &[Text("43")]),
                Step(Fresh("'kept' in globals()"), &[Text("False")]),
                Step(Code("kept"), &[Text("20")]),
                Step(
                    Code("import os\nos.getcwd(), os.environ['HOME'], __name__"),
                    &[Text("('/mnt/data', '/home/sandbox', '__main__')")],
                ),
                Step(
                    Code("import pickle\nclass P:\n    pass\ntype(pickle.loads(pickle.dumps(P()))).__name__"),
                    &[Text("'P'")],
                ),
            ],
        ),
        case(
            "rich_values",
            &[
                Step(Code("import pandas as pd\npd.DataFrame({'a': [1]})"), &[Form("text/html"), Text("   a\n0  1")]),
                Step(Code("import sympy\nsympy.Symbol('x') ** 2"), &[Form("text/latex"), Text("x**2")]),
                Step(Code("from PIL import Image\nImage.new('RGB', (4, 4))"), &[Form("image/png")]),
                Step(
                    Code("from IPython.display import HTML, display\ndisplay(HTML('<b>x</b>'))\ndisplay(1)\n2"),
                    &[
                        Text("2"),
                        Is(|run| match run.displays.as_slice() {
                            [one, two] if one.forms[0].0 == "text/html" && two.text == "1" => Ok(()),
                            other => Err(format!("{other:?}")),
                        }),
                    ],
                ),
            ],
        ),
        case(
            "figures",
            &[
                Step(Code("import matplotlib.pyplot as plt\nplt.plot([1, 2]);"), &[Images(1)]),
                Step(
                    Code("plt.figure(); plt.plot([1]); plt.figure(); plt.plot([2]); print('two')"),
                    &[Images(2), Says("two\n")],
                ),
                Step(Code("plt.plot([1]); plt.show(); plt.plot([2]); plt.show()"), &[Images(2)]),
                Step(Code("1"), &[Images(0)]),
                Step(Code("fig, ax = plt.subplots()\nax.plot([1])\nfig"), &[Form("image/png")]),
                Step(Code("for n in range(3):\n    plt.figure()\n    plt.title(str(n))"), &[Images(3)]),
                Step(
                    Code(
                        "fig, ax = plt.subplots()\nax.bar(['a'], [1])\nfig.savefig('/mnt/data/bar.png')\nplt.close(fig)\nos.path.getsize('/mnt/data/bar.png') > 1000",
                    ),
                    &[Text("True"), Images(0)],
                ),
                Step(Code("import seaborn as sns\nsns.histplot([1, 2, 2]);"), &[Images(1)]),
                Step(Code("plt.figure(); 1 / 0"), &[Ends("Raised"), Raised("ZeroDivisionError", "division by zero")]),
                Step(Code("plt.close('all')"), &[]),
            ],
        ),
        case(
            "magics",
            &[
                Step(Code("%timeit -n1 -r1 1 + 1"), &[Part("per loop")]),
                Step(Code("%%bash\necho hi; echo err >&2"), &[Part("hi\n"), Errs("err")]),
                Step(Code("%%bash\nexit 3"), &[Ends("Raised"), Raised("CalledProcessError", "3")]),
                Step(
                    Code("%who_ls int"),
                    &[Is(|run| match &run.result {
                        Some(rich) if rich.text.contains("'kept'") => Ok(()),
                        other => Err(format!("{other:?}")),
                    })],
                ),
                Step(Code("%%writefile note.txt\nwritten"), &[Part("Writing note.txt")]),
                Step(Code("%%time\nsum(range(10))"), &[Text("45"), Part("Wall time")]),
                Step(Code("%cd /tmp"), &[Part("/tmp")]),
                Step(Code("%cd /mnt/data"), &[]),
                Step(Code("%matplotlib inline"), &[Quiet]),
                Step(Code("%env HOME"), &[Text("'/home/sandbox'")]),
                Step(
                    Code("%no_such"),
                    &[
                        Ends("Raised"),
                        Raised("UsageError", "no_such"),
                        Is(|run| match String::from_utf8_lossy(&run.stderr).matches("UsageError").count() {
                            1 => Ok(()),
                            count => Err(format!("said {count} times")),
                        }),
                    ],
                ),
                Step(Code("len?"), &[]),
            ],
        ),
        case(
            "what_asks_gets_no_answer_and_waits_for_none",
            &[
                Step(Code("breakpoint()"), &[Ends("Raised")]),
                Step(Code("import getpass\ngetpass.getpass()"), &[Ends("Raised"), Raised("EOFError", "")]),
                Step(Code("help(len)"), &[Part("Return the number of items")]),
                Step(Code("help()"), &[Part("help")]),
                Step(Code("len??"), &[]),
                Step(Code("!cat; read x || echo end"), &[Says("end\n")]),
                Step(Code("!python3 -c 'input()'"), &[Errs("EOFError")]),
            ],
        ),
        case(
            "more_magics",
            &[
                Step(Code("%%capture held\nprint('held')"), &[Says("")]),
                Step(Code("held.stdout"), &[Text("'held\\n'")]),
                Step(
                    Code("%%html\n<b>x</b>"),
                    &[Is(|run| match run.displays.as_slice() {
                        [one]
                            if one
                                .forms
                                .iter()
                                .any(|(media, bytes)| media == "text/html" && bytes.starts_with(b"<b>x</b>")) =>
                        {
                            Ok(())
                        }
                        other => Err(format!("{other:?}")),
                    })],
                ),
                Step(Code("%%writefile script.py\nran = 5\nprint('ran')"), &[]),
                Step(Code("%run script.py"), &[Says("ran\n")]),
                Step(Code("ran"), &[Text("5")]),
                Step(Code("%load_ext autoreload\n%autoreload 2"), &[Quiet]),
                Step(Code("import script\nscript.ran"), &[Text("5")]),
            ],
        ),
        case(
            "commands",
            &[
                Step(Code("!echo hi; echo err >&2"), &[Says("hi\n"), Errs("err\n")]),
                Step(Code("word = 'there'\n!echo hi {word} $word"), &[Says("hi there there\n")]),
                Step(Code("lines = !printf 'a\\nb\\n'\nlines"), &[Text("['a', 'b']")]),
                Step(Code("!exit 3"), &[]),
                Step(Code("_exit_code"), &[Text("3")]),
                Step(Code("!cat note.txt"), &[Says("written\n")]),
                Step(Code("import subprocess\nsubprocess.check_output(['echo', 'hi'])"), &[Text("b'hi\\n'")]),
                Step(
                    Code("print('first')\nsubprocess.run('echo out; echo err >&2', shell=True)\nprint('last')"),
                    &[Says("first\nout\nlast\n"), Errs("err\n")],
                ),
                Step(Code("os.system('exit 3') >> 8"), &[Text("3")]),
            ],
        ),
        case(
            "top_level_await",
            &[
                Step(Code("import asyncio\nawait asyncio.sleep(0.01, 'late')"), &[Text("'late'")]),
                Step(
                    Code("async def main():\n    await asyncio.sleep(0)\n    return 6\nasyncio.run(main())"),
                    &[Text("6")],
                ),
                Step(Code("await main() + 1"), &[Text("7")]),
                Step(
                    Code("task = asyncio.ensure_future(main())\nawait asyncio.sleep(0.01)\ntask.result()"),
                    &[Text("6")],
                ),
                Step(
                    Code("async with asyncio.timeout(0.01):\n    await asyncio.sleep(10)"),
                    &[Ends("Raised"), Raised("TimeoutError", "")],
                ),
                Step(Code("[r async for r in (await main() for _ in range(2))]"), &[Text("[6, 6]")]),
            ],
        ),
        case(
            "errors",
            &[
                Step(
                    Code("def g():\n    return 1 / 0\ng()"),
                    &[
                        Ends("Raised"),
                        Raised("ZeroDivisionError", "division by zero"),
                        Errs("ZeroDivisionError: division by zero"),
                        Says(""),
                    ],
                ),
                Step(Code("1 +"), &[Ends("Raised"), Raised("SyntaxError", "invalid syntax")]),
                Step(Code("nowhere"), &[Ends("Raised"), Raised("NameError", "name 'nowhere' is not defined")]),
                Step(Code("raise ValueError('é😀')"), &[Ends("Raised"), Raised("ValueError", "é😀")]),
                Step(
                    Code("class Bad(Exception):\n    def __str__(self):\n        raise Bad()\nraise Bad()"),
                    &[Ends("Raised"), Raised("Bad", "")],
                ),
                Step(
                    Code("class Ugly:\n    def __repr__(self):\n        raise ValueError('no repr')\nUgly()"),
                    &[Errs("no repr")],
                ),
                Step(Code("import sys\nsys.exit(3)"), &[Ends("Raised"), Raised("SystemExit", "3")]),
                Step(Code("exit()"), &[Ends("Succeeded")]),
                Step(
                    Code("def deep():\n    deep()\ndeep()"),
                    &[Ends("Raised"), Raised("RecursionError", "maximum recursion")],
                ),
                Step(Code("import warnings\nwarnings.warn('careful')"), &[Says(""), Errs("UserWarning: careful")]),
                Step(Code("input('? ')"), &[Ends("Raised"), Raised("EOFError", "")]),
                Step(Code("sys.stdin.read()"), &[Text("''")]),
                Step(Code("print('\\ud800')"), &[Ends("Raised"), Raised("UnicodeEncodeError", "surrogates")]),
                Step(Code("'\\ud800'"), &[Value("'\\ud800'", None)]),
                Step(Code("kept"), &[Text("20")]),
            ],
        ),
        case(
            "output",
            &[
                Step(
                    Code("print('x' * 50_000_000)"),
                    &[Is(|run| {
                        let is_cut = run.stdout.len() <= 1 << 20 && run.dropped.0 > 48_000_000;
                        if is_cut { Ok(()) } else { Err(format!("{} and {:?}", run.stdout.len(), run.dropped)) }
                    })],
                ),
                Step(
                    Code(
                        "import time\nfor byte in 'é€😀'.encode():\n    os.write(1, bytes([byte]))\n    time.sleep(0.02)",
                    ),
                    &[Is(|run| if run.stdout == "é€😀".as_bytes() { Ok(()) } else { Err("cut".to_owned()) })],
                ),
                Step(
                    Code(
                        "import threading\ndef say(n):\n    for _ in range(100):\n        print(f'{n}')\n\
                         threads = [threading.Thread(target=say, args=(n,)) for n in range(5)]\n\
                         for t in threads: t.start()\nfor t in threads: t.join()",
                    ),
                    &[Is(|run| {
                        let count = String::from_utf8_lossy(&run.stdout).bytes().filter(u8::is_ascii_digit).count();
                        if count == 500 { Ok(()) } else { Err(format!("{count} of 500")) }
                    })],
                ),
                Step(Code("threading.Timer(0.1, lambda: print('late')).start()\nprint('now')"), &[Says("now\n")]),
                Step(Code("time.sleep(0.3)\nprint('next')"), &[Part("next\n")]),
                Step(
                    Code("'x' * 1_000_000"),
                    &[Is(|run| match &run.result {
                        Some(rich)
                            if rich.text.len() < 300_000 && rich.text.ends_with('…') && rich.scalar.is_none() =>
                        {
                            Ok(())
                        }
                        other => Err(format!("{:?}", other.as_ref().map(|rich| rich.text.len()))),
                    })],
                ),
            ],
        ),
        case(
            "processes",
            &[
                Step(
                    Code(
                        "from multiprocessing import Pool\ndef square(n):\n    return n * n\nwith Pool(2) as pool:\n    squares = pool.map(square, range(4))\nsquares",
                    ),
                    &[Text("[0, 1, 4, 9]")],
                ),
                Step(
                    Code(
                        "from concurrent.futures import ThreadPoolExecutor, ProcessPoolExecutor\nwith ProcessPoolExecutor(2) as pool:\n    found = list(pool.map(square, range(3)))\nfound",
                    ),
                    &[Text("[0, 1, 4]")],
                ),
                Step(
                    Code(
                        "from joblib import Parallel, delayed\nParallel(n_jobs=2)(delayed(math.sqrt)(n) for n in [1, 4])",
                    ),
                    &[Text("[1.0, 2.0]")],
                ),
                Step(
                    Code("pid = os.fork()\nif pid == 0:\n    print('child')\n    os._exit(0)\nos.waitpid(pid, 0)[1]"),
                    &[Text("0"), Says("child\n")],
                ),
                Step(Code("p = subprocess.Popen(['sleep', '4001'])"), &[]),
                Step(Code("p.poll() is None"), &[Text("True")]),
                Step(Code("p.kill(); p.wait()"), &[Text("-9")]),
            ],
        ),
        Case {
            name: "savefig_with_agg",
            session: "savefig",
            steps: &[
                Step(
                    Code(
                        "import matplotlib\nmatplotlib.use('Agg')\nimport matplotlib.pyplot as plt, os\nplt.plot([1, 2])\n\
                         plt.savefig('/mnt/data/a.png')\nplt.show()\nos.path.getsize('/mnt/data/a.png') > 1000",
                    ),
                    &[Text("True")],
                ),
                Step(
                    Code(
                        "import subprocess\nsubprocess.run(['python3', '-c', 'import matplotlib.pyplot as p; p.plot([1]); p.savefig(\"b.png\")'], check=True).returncode",
                    ),
                    &[Text("0")],
                ),
            ],
        },
    ]
}

/// Interrupts and time-outs: what was kept before is kept after.
fn stopped() -> Vec<Case> {
    let case = |name, steps| Case { name, session: "stopped", steps };
    vec![
        case(
            "interrupt_keeps_state",
            &[
                Step(Code("import time, asyncio, subprocess, os\nimport numpy as np\nkept = 7"), &[]),
                Step(
                    Interrupted("print('go')\nwhile True:\n    pass", "go"),
                    &[Ends("Cancelled"), Errs("KeyboardInterrupt")],
                ),
                Step(Interrupted("print('go')\ntime.sleep(1000)", "go"), &[Ends("Cancelled")]),
                Step(
                    Interrupted(
                        "a = np.random.rand(500, 500)\nprint('go')\nwhile True:\n    a = a @ a\n    a /= a.max()",
                        "go",
                    ),
                    &[Ends("Cancelled")],
                ),
                Step(Interrupted("print('go')\nawait asyncio.sleep(1000)", "go"), &[Ends("Cancelled")]),
                Step(Interrupted("print('go')\nsubprocess.run(['sleep', '4002'])", "go"), &[Ends("Cancelled")]),
                Step(Interrupted("!echo go; sleep 4003", "go"), &[Ends("Cancelled")]),
                Step(Interrupted("%%bash\necho go; sleep 4004", "go"), &[Ends("Cancelled")]),
                Step(
                    Interrupted("try:\n    print('go')\n    time.sleep(1000)\nfinally:\n    print('cleaned')", "go"),
                    &[Ends("Cancelled"), Part("cleaned")],
                ),
                Step(
                    Interrupted("import threading\nprint('go')\nthreading.Event().wait()", "go"),
                    &[Ends("Cancelled")],
                ),
                Step(Code("kept, os.popen(\"pgrep -fc 'sleep 400[234]$'\").read()"), &[Text("(7, '0\\n')")]),
            ],
        ),
        case(
            "time_out_keeps_state",
            &[
                Step(Timed("time.sleep(1000)", 1), &[Ends("TimedOut")]),
                Step(Timed("while True: pass", 1), &[Ends("TimedOut")]),
                Step(
                    Timed(
                        "p = subprocess.Popen(['sleep', '4005'])\nq = subprocess.Popen(['setsid', 'sleep', '4006'])\nprint('on')\ntime.sleep(1000)",
                        1,
                    ),
                    &[Ends("TimedOut"), Says("on\n")],
                ),
                Step(
                    Code("kept, p.wait(), os.popen(\"pgrep -fc 'sleep 400[56]$'\").read()"),
                    &[Text("(7, -9, '0\\n')")],
                ),
                Step(Timed("!sleep 4007", 1), &[Ends("TimedOut")]),
                Step(Timed("await asyncio.sleep(1000)", 1), &[Ends("TimedOut")]),
                Step(Code("kept"), &[Text("7")]),
            ],
        ),
        case(
            "one_that_will_not_stop_is_replaced",
            &[
                Step(
                    Timed(
                        "while True:\n    try:\n        time.sleep(1000)\n    except BaseException:\n        pass",
                        1,
                    ),
                    &[Ends("TimedOut"), Lost],
                ),
                Step(Code("'kept' in globals()"), &[Text("False")]),
            ],
        ),
    ]
}

/// Code that does harm to its own interpreter.
fn harmed() -> Vec<Case> {
    let case = |name, steps| Case { name, session: "harmed", steps };
    vec![
        case(
            "death",
            &[
                Step(Code("import os\ngone = 1"), &[]),
                Step(Code("print('last words'); os._exit(3)"), &[Ends("Died"), Lost, Says("last words\n")]),
                Step(Code("'gone' in globals()"), &[Text("False")]),
                Step(Code("hoard = []\nwhile True:\n    hoard.append(b'x' * 50_000_000)"), &[Ends("Died"), Lost]),
                Step(Code("1 + 1"), &[Text("2")]),
                Step(Code("import ctypes\nctypes.string_at(0)"), &[Ends("Died"), Lost]),
                Step(Code("1 + 1"), &[Text("2")]),
                Step(Code("import os, signal\nos.kill(os.getpid(), signal.SIGTERM)"), &[Ends("Died"), Lost]),
                Step(Code("1 + 1"), &[Text("2")]),
            ],
        ),
        case(
            "signals_of_its_own",
            &[
                Step(
                    Code("import os, signal, time\nkept = 7\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(1)"),
                    &[Ends("Raised"), Raised("KeyboardInterrupt", "")],
                ),
                Step(Code("signal.signal(signal.SIGINT, signal.SIG_IGN);"), &[]),
                Step(Interrupted("print('go')\ntime.sleep(1000)", "go"), &[Ends("Cancelled")]),
                Step(
                    Code(
                        "def ring(*_):\n    raise TimeoutError('rang')\nsignal.signal(signal.SIGALRM, ring)\nsignal.setitimer(signal.ITIMER_REAL, 0.05)\ntime.sleep(1000)",
                    ),
                    &[Ends("Raised"), Raised("TimeoutError", "rang")],
                ),
                Step(Interrupted("print('go')\nwhile True:\n    print('x' * 1000)", "go"), &[Ends("Cancelled")]),
                Step(Code("kept"), &[Text("7")]),
            ],
        ),
        case(
            "replaced_modules",
            &[
                Step(
                    Code("import json, os\njson.dumps = json.loads = None\n'one'"),
                    &[Value("'one'", Some("\"one\""))],
                ),
                Step(Code("os.write = os.read = os.getpid = None\n'two'"), &[Text("'two'")]),
                Step(Code("'three'"), &[Text("'three'")]),
                Step(
                    Code(
                        "import importlib, sys\nimport threading\nsys.modules['threading'] = None\nthreading.current_thread = None\n'four'",
                    ),
                    &[Text("'four'")],
                ),
            ],
        ),
        Case {
            name: "replaced_streams",
            session: "streams",
            steps: &[
                Step(Code("import sys, io\nsys.stdout = io.StringIO()\nprint('unseen')\n1"), &[Text("1"), Says("")]),
                Step(Code("2"), &[Text("2")]),
                Step(Code("sys.stdout = sys.stderr = None\n3"), &[Text("3")]),
                Step(
                    Code("print('seen')\n1 / 0"),
                    &[Ends("Raised"), Raised("ZeroDivisionError", ""), Errs("by zero"), Says("seen\n")],
                ),
                Step(Code("sys.stdout.close()\n4"), &[Text("4")]),
                Step(Code("print('open')\n5"), &[Text("5"), Says("open\n")]),
            ],
        },
        Case {
            name: "replaced_builtins",
            session: "builtins",
            steps: &[
                Step(Code("str = list = len = print = type = id = open = 'mine'\n1"), &[Text("1")]),
                Step(Code("1 / 0"), &[Ends("Raised"), Raised("ZeroDivisionError", "division by zero")]),
                Step(Code("str, [2]"), &[Text("('mine', [2])")]),
                Step(Code("del str, list, len, print, type, id, open\nkept = 3"), &[]),
                Step(Code("import builtins\nbuiltins.print = builtins.open = None\ndel builtins.sum\n1"), &[Text("1")]),
                Step(Code("print(sum([kept, 1]))"), &[Says("4\n")]),
                // IPython itself stumbles here: that run says so, and the next one does not.
                Step(
                    Code("builtins.str = builtins.isinstance = builtins.getattr = None"),
                    &[Ends("Raised"), Raised("TypeError", "")],
                ),
                Step(Code("str(kept)"), &[Text("'3'")]),
                Step(Code("loud = builtins.print\nbuiltins.print = lambda *a: loud('>', *a)"), &[]),
                Step(Code("print('mine')\nbuiltins.print = loud"), &[Says("> mine\n")]),
            ],
        },
        Case {
            name: "closed_descriptors",
            session: "descriptors",
            steps: &[
                Step(Code("import os\nos.close(1)\n1"), &[Text("1")]),
                Step(Code("print('again')\n2"), &[Text("2"), Says("again\n")]),
                Step(Code("os.close(0); os.close(2)\n3"), &[Text("3")]),
                Step(Code("1 / 0"), &[Ends("Raised"), Errs("ZeroDivisionError")]),
                Step(Code("os.closerange(3, 256)\n4"), &[Ends("Died"), Lost]),
                Step(Code("print('well')\n5"), &[Text("5"), Says("well\n")]),
            ],
        },
    ]
}
