"""Runs Python code for the agent: IPython's shell, with the agent's channel in place of a kernel's sockets.

The agent sends one run at a time. What a run displays, its value, its exception and its end go back as messages that
carry the run's number; what it prints goes to the ordinary descriptors, which the agent reads.
"""

import ast
import asyncio
import base64
import builtins
import contextlib
import ctypes
import gc
import inspect
import io
import json
import linecache
import operator
import os
import random
import re
import signal
import subprocess
import sys
import threading
import types
import warnings

# What user code may replace, and this runner needs.
from _signal import SIGINT, getsignal
from os import getpid, read, write
from threading import current_thread, main_thread

FROM_AGENT, TO_AGENT = 4, 5
MAX_JSON = 2 * 1024 * 1024
MAX_FORMS = 3 * 1024 * 1024
MAX_TEXT = 256 * 1024
MAX_MESSAGE = 64 * 1024
MAX_FORM_COUNT = 24
ENCODE = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
ENCODE_SCALAR = json.JSONEncoder(allow_nan=False).encode
DECODE = json.JSONDecoder().decode
BINARY = ("image/", "audio/", "video/", "application/pdf", "application/octet-stream")


NONE = {}


def clean(text, limit):
    """`text` as it can be encoded, and cut: the agent takes no half characters."""
    if not isinstance(text, str):
        text = str(text)
    if len(text) > limit:
        text = text[:limit] + "…"
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


class Channel:
    """What is said to the agent. Whole messages only, also when an interrupt arrives in the middle of one."""

    def __init__(self):
        self.pid = getpid()
        self.lock = threading.RLock()
        self.nonce = None
        self.is_running = False
        self.is_sending = False
        self.is_interrupted = False
        self.was_interrupted = False

    def on_interrupt(self, _signal, _frame):
        if getpid() != self.pid:
            raise KeyboardInterrupt
        if self.is_sending:
            self.is_interrupted = True
        elif self.is_running:
            # Raised once in a run: a second one would cut short what cleans up after the first.
            self.is_running = False
            self.was_interrupted = True
            raise KeyboardInterrupt

    def send(self, message, blob=b""):
        # A copy of this process, made by os.fork, has nothing to say here.
        if getpid() != self.pid:
            return
        encoded = ENCODE(message).encode("utf-8")
        if len(encoded) > MAX_JSON:
            self.shorten(message)
            encoded = ENCODE(message).encode("utf-8")
        data = len(encoded).to_bytes(4, "little") + len(blob).to_bytes(4, "little") + encoded + blob
        with self.lock:
            self.is_sending = True
            try:
                view = memoryview(data)
                while view:
                    view = view[write(TO_AGENT, view) :]
            finally:
                self.is_sending = False
        if self.is_interrupted and current_thread() is main_thread():
            self.is_interrupted = False
            if self.is_running:
                self.is_running = False
                self.was_interrupted = True
                raise KeyboardInterrupt

    def greet(self):
        self.send({"t": "ready", "version": ".".join(map(str, sys.version_info[:3]))})

    @staticmethod
    def shorten(message):
        rich = message.get("rich", message)
        for name, value in rich.items():
            if isinstance(value, str) and name not in ("t", "n"):
                rich[name] = None if name == "scalar" else value[: MAX_MESSAGE // 2] + "…"

    def rich(self, kind, bundle, value=None, has_value=False):
        """Sends a value in all its forms."""
        nonce = self.nonce
        if nonce is None:
            return
        text = bundle.get("text/plain")
        if text is None and has_value:
            text = object.__repr__(value)
        forms, blobs, dropped, left = [], [], [], MAX_FORMS
        for media, data in list(bundle.items())[:MAX_FORM_COUNT]:
            if media == "text/plain":
                continue
            try:
                data = form_bytes(media, data)
            except (ValueError, TypeError):
                continue
            media = clean(media, 100)
            if len(data) <= left:
                left -= len(data)
                forms.append([media, len(data)])
                blobs.append(data)
            else:
                dropped.append([media, len(data)])
        rich = {
            "text": clean(text or "", MAX_TEXT),
            "scalar": scalar(value) if has_value else None,
            "forms": forms,
            "dropped": dropped,
        }
        # What was printed comes before what is shown after it.
        flush()
        self.send({"t": kind, "n": nonce, "rich": rich}, b"".join(blobs))


def form_bytes(media, data):
    if isinstance(data, (bytes, bytearray, memoryview)):
        return bytes(data)
    if isinstance(data, str):
        if media.startswith(BINARY) and media != "image/svg+xml":
            return base64.b64decode(data)
        return data.encode("utf-8", "backslashreplace")
    return json.dumps(data, default=repr).encode("utf-8", "backslashreplace")


def scalar(value):
    """The JSON of a plain value; None for every other."""
    if type(value).__module__ == "numpy" and callable(getattr(value, "item", None)) and not getattr(value, "ndim", 1):
        try:
            value = value.item()
        except Exception:
            return None
    if value is None or type(value) in (bool, int, float, str):
        try:
            if type(value) is str:
                if len(value) > MAX_TEXT:
                    return None
                value.encode("utf-8")
            return ENCODE_SCALAR(value)
        except ValueError:
            return None
    return None


def flush():
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:
            pass


class Foundations:
    """What every run stands on, mended after one that broke it: other code than this runner's needs it too."""

    def __init__(self):
        self.builtins = [(name, value) for name, value in vars(builtins).items() if callable(value)]
        self.whole = dict(vars(builtins))
        self.open()

    def open(self):
        self.copies = {fd: os.dup(fd) for fd in (1, 2)}

    def close(self):
        for copy in self.copies.values():
            os.close(copy)
        self.copies = {}

    def mend(self):
        try:
            is_whole = vars(builtins) == self.whole
        except Exception:
            # Something that cannot be compared was put there.
            is_whole = False
        for name, value in () if is_whole else self.builtins:
            now = getattr(builtins, name, None)
            # One that was replaced by its like was replaced with a purpose, and stays.
            if now is not value and not (isinstance(now, type) if isinstance(value, type) else callable(now)):
                setattr(builtins, name, value)
        if not is_whole:
            self.whole = dict(vars(builtins))
        for fd, copy in self.copies.items():
            try:
                os.fstat(fd)
            except OSError:
                try:
                    os.dup2(copy, fd)
                except OSError:
                    pass
        for name, fd, errors in (("stdout", 1, "strict"), ("stderr", 2, "backslashreplace")):
            stream = getattr(sys, name, None)
            if stream is None or getattr(stream, "closed", False):
                try:
                    raw = open(fd, "wb", buffering=0, closefd=False)
                except OSError:
                    continue
                setattr(sys, name, io.TextIOWrapper(raw, encoding="utf-8", errors=errors, write_through=True))


def make_shell(channel):
    from IPython.core.displayhook import DisplayHook
    from IPython.core.displaypub import DisplayPublisher
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets import Type
    from traitlets.config import Config

    class Publisher(DisplayPublisher):
        def publish(self, data, metadata=None, *args, **kwargs):
            channel.rich("display", data)

        def clear_output(self, wait=False):
            pass

    class Hook(DisplayHook):
        """Keeps the value of the last expression until the run has ended."""

        kept = None
        plain = None

        def compute_format_data(self, result):
            plain = self.plain
            if plain is not None and type(result) in plain.KINDS and plain.is_usual_for(result):
                try:
                    return {"text/plain": repr(result)}, {}
                except Exception:
                    # It is said as for every other value.
                    pass
            return super().compute_format_data(result)

        def quiet(self):
            # Tokens are looked at only when one of them can be a semicolon.
            inputs = self.shell.history_manager.input_hist_parsed
            return bool(inputs) and ";" in inputs[-1] and super().quiet()

        def __call__(self, result=None):
            self.check_for_underscore()
            if self.quiet():
                return
            if result is None:
                if self.shell.says_none:
                    self.keep({"text/plain": "None"}, None)
                return
            # Values before the last one are shown as they come (`ast_node_interactivity = "all"`).
            self.send("display")
            bundle, _ = self.compute_format_data(result)
            self.update_user_ns(result)
            self.fill_exec_result(result)
            self.keep(bundle, result)

        def keep(self, bundle, value):
            self.kept = (bundle, value)

        def send(self, kind):
            kept, self.kept = self.kept, None
            if kept is not None:
                bundle, value = kept
                channel.rich(kind, bundle, value, has_value=True)

    class LastIsCall(ast.NodeVisitor):
        """Sees whether a run ends with a call: one that gives None then has no value, as a statement has none."""

        def visit(self, tree):
            last = tree.body[-1] if getattr(tree, "body", None) else None
            expression = last.value if isinstance(last, ast.Expr) else None
            while isinstance(expression, ast.Await):
                expression = expression.value
            shell.says_none = expression is not None and not isinstance(expression, ast.Call)
            return tree

    class Shell(InteractiveShell):
        says_none = False
        traceback_text = ""
        lean = None
        displayhook_class = Type(Hook)
        display_pub_class = Type(Publisher)

        def system(self, cmd):
            command = self.var_expand(cmd, depth=1)
            flush()
            # An interrupt ends the command and the run, not only the command.
            code = subprocess.call(command, shell=True, executable=os.environ.get("SHELL") or "/bin/bash")
            self.user_ns["_exit_code"] = code

        def _showtraceback(self, etype, evalue, stb):
            text = self.InteractiveTB.stb2text(stb)
            self.traceback_text = text
            print(text, file=sys.stderr)

        def showtraceback(self, *args, **kwargs):
            error = sys.exc_info()[1]
            # `exit()` and `sys.exit(0)` end a run; they are no failure.
            if isinstance(error, SystemExit) and error.code in (None, 0):
                return
            if isinstance(error, asyncio.CancelledError) and channel.was_interrupted:
                return
            if isinstance(error, KeyboardInterrupt):
                # Where the signal came upon the code says little, and is often inside this runner.
                self._showtraceback(type(error), error, ["KeyboardInterrupt"])
                return
            super().showtraceback(*args, **kwargs)

        def show_usage_error(self, exc):
            self._showtraceback(type(exc), exc, [f"UsageError: {exc}"])

        def ask_exit(self):
            raise SystemExit

        def enable_gui(self, gui=None):
            pass

    config = Config()
    config.HistoryManager.enabled = False
    config.HistoryManager.hist_file = ":memory:"
    config.InteractiveShell.colors = "nocolor"
    config.InteractiveShell.cache_size = 100
    shell = Shell.instance(config=config)
    shell.loop_runner = loop_runner
    # For ever, and not anew for each cell: all that CPython has learned about the use of builtins would be forgotten with
    # every name that comes and goes there.
    shell.builtin_trap.__enter__()
    last_is_call = LastIsCall()
    shell.ast_transformers.append(last_is_call)
    shell.lean = Lean(shell, last_is_call)
    shell.displayhook.plain = Plain(shell.display_formatter)
    return shell


def loop_runner(coroutine):
    """Runs top-level await. What was begun in earlier runs goes on meanwhile; an interrupt cancels only this."""
    loop = event_loop()
    task = loop.create_task(coroutine)
    try:
        return loop.run_until_complete(task)
    except KeyboardInterrupt:
        task.cancel()
        try:
            loop.run_until_complete(asyncio.wait_for(asyncio.gather(task, return_exceptions=True), 1))
        except (asyncio.CancelledError, asyncio.TimeoutError):
            pass
        raise


LOOP = []


def event_loop():
    if not LOOP or LOOP[0].is_closed():
        LOOP[:] = [asyncio.new_event_loop()]
    else:
        try:
            if asyncio.get_event_loop_policy().get_event_loop() is LOOP[0]:
                return LOOP[0]
        except RuntimeError:
            # Somebody took it away.
            pass
    asyncio.set_event_loop(LOOP[0])
    return LOOP[0]


class Lean:
    """Runs the ordinary cell as IPython's run_cell does, without what that does in vain for it.

    An ordinary cell is Python as it stands: nothing in it is IPython's own syntax, nothing awaits, and nobody has changed
    what IPython does before it runs a cell. Whether a cell is ordinary is known before anything of it has happened; every
    other is run_cell's. The same calls come in the same order as in `InteractiveShell._run_cell` and `run_ast_nodes`, of
    the versions in `KNOWN`; left out are the tokenizer's passes over text that is Python already, and the compilation that
    only asks whether it awaits.
    """

    KNOWN = ((9, 18),)
    # What could be IPython's syntax in text that is Python as well, or is changed by the removal of indentation.
    DOUBTFUL = re.compile(r">>>|^\s*\.\.\.|\.\.\.:|In \[|^[ \t]+$|[\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029]|__future__|paste", re.M)
    WORD = re.compile(r"[\w.*]+")
    # A warning of the compiler must come as often as run_cell makes it come: here it is a reason to leave the cell to it.
    STRICT = ("error", None, Warning, None, 0)
    METHODS = (
        "run_cell", "_run_cell", "run_cell_async", "run_ast_nodes", "run_code", "transform_cell", "transform_ast",
        "should_run_async", "find_magic", "push", "_tee",
    )  # fmt: skip

    def __init__(self, shell, last_is_call):
        self.shell = shell
        self.last_is_call = last_is_call
        self.kind = type(shell)
        self.usual = None
        try:
            import IPython
            from IPython.core import interactiveshell
            from IPython.core.autocall import IPyAutocall
            from IPython.core.history import HistoryOutput
            from IPython.core.macro import Macro
            from traitlets import All

            if IPython.version_info[:2] in self.KNOWN:
                self.rewritten = (Macro, IPyAutocall)
                self.output, self.all_traits = HistoryOutput, All
                self.parts = interactiveshell
                self.usual = self.state()
        except (ImportError, AttributeError, TypeError):
            pass

    def state(self):
        """Everything that user code may change about what comes before a cell runs."""
        shell, kind, history = self.shell, self.kind, self.shell.history_manager
        inputs, prefilter, events = shell.input_transformer_manager, shell.prefilter_manager, shell.events.callbacks
        return [
            *inputs.cleanup_transforms, None, *inputs.line_transforms, None, *inputs.token_transformers, None,
            *shell.input_transformers_post, None, *shell.ast_transformers, None, *events["pre_execute"], None,
            *events["pre_run_cell"], None, *prefilter.checkers, None, *prefilter.transformers, None,
            type(inputs), type(prefilter), type(shell.compile), type(shell), shell.autocall, shell.trio_runner,
            shell.ast_node_interactivity, type(history), type(history).store_inputs, history.using_thread,
            history.__dict__.get("store_inputs"), *[getattr(kind, name) for name in self.METHODS],
            *[name for name in self.METHODS if name in shell.__dict__],
        ]  # fmt: skip

    def is_usual(self):
        now = self.state()
        return len(now) == len(self.usual) and all(map(operator.is_, now, self.usual))

    def run(self, code, is_stored):
        """What run_cell would answer; `None`, and nothing has happened, when it has to be asked."""
        if self.usual is None:
            return None
        prepared = self.prepare(code)
        if prepared is None:
            return None
        shell, result = self.shell, None
        tees = []
        try:
            for stream, kind in ((sys.stdout, "out_stream"), (sys.stderr, "err_stream")):
                tees.append((stream, stream.write))
                stream.write = self.tee(stream.write, kind)
            try:
                info = self.parts.ExecutionInfo(
                    code, is_stored, False, True, None, None, transformed_cell=prepared[0]
                )
                try:
                    result = self.run_prepared(info, *prepared)
                except BaseException as error:
                    try:
                        result = self.parts.ExecutionResult(info)
                        result.error_in_exec = error
                        shell.showtraceback(running_compiled_code=True)
                    except:  # noqa: E722
                        pass
            finally:
                shell.events.trigger("post_execute")
                shell.events.trigger("post_run_cell", result)
        finally:
            for stream, write in reversed(tees):
                stream.write = write
        return result

    def tee(self, original, kind):
        """Writes, and keeps what is written with the cell's outputs, as `InteractiveShell._tee` does."""
        shell, count, make = self.shell, self.shell.execution_count, self.output
        publisher, hook, outputs = shell.display_pub, shell.displayhook, shell.history_manager.outputs

        def write(data, *args, **kwargs):
            result = original(data, *args, **kwargs)
            if data and not (publisher.is_publishing or hook.is_active or shell.showing_traceback):
                kept = outputs[count]
                if not kept or kept[-1].output_type != kind:
                    kept.append(make(output_type=kind, bundle={"stream": []}))
                kept[-1].bundle["stream"].append(data)
            return result

        return write

    def put(self, owner, name, value):
        """Sets a trait, to a value of its kind: without ceremony when nobody watches."""
        watched = owner._trait_notifiers
        if name in watched or any(watched.get(self.all_traits, NONE).values()):
            setattr(owner, name, value)
        else:
            owner._trait_values[name] = value

    def store_inputs(self, count, cell, raw):
        """As `HistoryManager.store_inputs` does."""
        shell, history = self.shell, self.shell.history_manager
        cell, raw = cell.rstrip("\n"), raw.rstrip("\n")
        if history._exit_re.match(raw.strip()):
            return
        history.input_hist_parsed.append(cell)
        history.input_hist_raw.append(raw)
        with history.db_input_cache_lock:
            history.db_input_cache.append((count, cell, raw))
        recent = history._ii, history._i, history._i00, raw
        for name, value in zip(("_iii", "_ii", "_i", "_i00"), recent):
            self.put(history, name, value)
        names = {"_i": recent[2], "_ii": recent[1], "_iii": recent[0], f"_i{count}": raw}
        shell.user_ns.update(names)
        shell.user_ns_hidden.update(names)

    def prepare(self, code):
        """The cell, its tree and what it compiles to, statement by statement; `None` when it is not an ordinary one."""
        shell = self.shell
        if not code or code[0].isspace() or self.DOUBTFUL.search(code) or not self.is_usual():
            return None
        cell = code if code.endswith("\n") else code + "\n"
        filters = warnings.filters
        try:
            if len(cell.splitlines()) == 1:
                word = self.WORD.match(cell)
                word = word and word[0]
                if word and (isinstance(shell.user_ns.get(word), self.rewritten) or shell.find_magic(word)):
                    return None
            compiler = shell.compile
            name = compiler.get_code_name(code, cell, shell.execution_count)
            flags = compiler.flags | (ast.PyCF_ALLOW_TOP_LEVEL_AWAIT if shell.autoawait else 0)
            filters.insert(0, self.STRICT)
            try:
                tree = compiler.ast_parse(cell, filename=name)
                body = tree.body
                last = len(body) - 1 if body and isinstance(body[-1], ast.Expr) else len(body)
                compiled = []
                for index, node in enumerate(body):
                    is_last = index == last
                    mode = "single" if is_last else "exec"
                    module = ast.Interactive([node]) if is_last else ast.Module([node], [])
                    one = compile(module, name, mode, flags, True)
                    if one.co_flags & inspect.CO_COROUTINE:
                        return None
                    compiled.append(one)
            finally:
                filters.remove(self.STRICT)
        except Exception:
            # Not Python as it stands, or a warning. What it is, is said by run_cell.
            return None
        return cell, name, tree, compiled

    def run_prepared(self, info, cell, name, tree, compiled):
        shell, history = self.shell, self.shell.history_manager
        is_stored = info.store_history
        result = self.parts.ExecutionResult(info)
        count = result.execution_count = shell.execution_count
        if is_stored:
            self.put(shell, "execution_count", count + 1)
        shell.events.trigger("pre_execute")
        shell.events.trigger("pre_run_cell", info)
        if is_stored:
            self.store_inputs(count, cell, info.raw_cell)
        shell.logger.log(cell, info.raw_cell)
        if cell.count("\n") == 1:
            shell._last_input_line = cell[:-1]
        with shell.builtin_trap:
            # As `compile.cache` does, which would make the name anew.
            shell.compile._filename_map[name] = count
            linecache.cache[name] = (len(cell), None, [line + "\n" for line in cell.splitlines()], name)
            with shell.display_trap:
                self.last_is_call.visit(tree)
                hook = shell.displayhook
                self.put(hook, "exec_result", result)
                has_raised = False
                try:
                    for one in compiled:
                        if self.parts._pseudo_sync_runner(shell.run_code(one, result)):
                            has_raised = True
                            break
                    else:
                        if compiled and self.parts.softspace(sys.stdout, 0):
                            print()
                except:  # noqa: E722
                    result.error_before_exec = sys.exc_info()[1]
                    shell.showtraceback()
                    has_raised = True
                shell.last_execution_succeeded = not has_raised
                shell.last_execution_result = result
                self.put(hook, "exec_result", None)
        if is_stored:
            history.store_output(count)
            if result.error_in_exec:
                history.exceptions[count] = shell._format_exception_for_storage(result.error_in_exec)
        return result


class Plain:
    """Knows for which plain values the display formatter would answer their `repr` and nothing else.

    That is so unless somebody has told a formatter something about their types, and costs far less to see than to do.
    """

    KINDS = {bool: (bool, int, object), int: (int, object), float: (float, object), str: (str, object)}
    PRINTERS = ("type_printers", "deferred_printers", "singleton_printers")

    def __init__(self, display):
        self.display = display
        self.is_known = False
        try:
            from IPython.core.formatters import DisplayFormatter, PlainTextFormatter
            from IPython.lib.pretty import _repr_pprint

            text = display.formatters["text/plain"]
            self.is_known = type(display) is DisplayFormatter and type(text) is PlainTextFormatter
            self.text, self.usual = text, _repr_pprint
            self.formatters = [display.ipython_display_formatter, display.mimebundle_formatter, *display.formatters.values()]
            self.others = [
                (one._trait_values, *[getattr(one, name) for name in self.PRINTERS])
                for one in self.formatters
                if one is not text
            ]
            self.is_known &= all(kind in text.type_printers for kind in (int, float, str))
        except (ImportError, AttributeError, KeyError):
            self.is_known = False

    def is_usual_for(self, value):
        if not self.is_known:
            return False
        display, text = self.display, self.text
        now = [display.ipython_display_formatter, display.mimebundle_formatter, *display.formatters.values()]
        if len(now) != len(self.formatters) or not all(map(operator.is_, now, self.formatters)):
            return False
        if not text.enabled or any(module == "builtins" for module, _ in text.deferred_printers):
            return False
        kinds = self.KINDS[type(value)]
        printers = text.type_printers
        chosen = next((printers[kind] for kind in kinds if kind in printers), None)
        if chosen is not self.usual or text.singleton_printers.get(id(value), chosen) is not self.usual:
            return False
        for values, types, deferred, singletons in self.others:
            if (
                values.get("type_printers") is not types
                or values.get("deferred_printers") is not deferred
                or values.get("singleton_printers") is not singletons
                or singletons
                or not types.keys().isdisjoint(kinds)
                or any(module == "builtins" for module, _ in deferred)
            ):
                return False
        return True


class FiguresInline:
    """Chooses matplotlib's backend when pyplot is imported and nobody has chosen one.

    Not in the environment: other programs would inherit a backend that only works here.
    """

    def __init__(self, shell):
        self.shell = shell

    def find_spec(self, name, path=None, target=None):
        if name != "matplotlib.pyplot":
            return None
        import importlib.machinery

        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            self.choose(module)

        spec.loader.exec_module = exec_module
        return spec

    def choose(self, pyplot):
        backend = "module://matplotlib_inline.backend_inline"
        try:
            # Looked up past the method that would settle on a backend.
            if not isinstance(dict.__getitem__(pyplot.matplotlib.rcParams, "backend"), str):
                from IPython.core.pylabtools import activate_matplotlib
                from matplotlib_inline.backend_inline import configure_inline_support

                activate_matplotlib(backend)
                configure_inline_support(self.shell, backend)
        except (ImportError, AttributeError, KeyError) as error:
            print(f"figures are not shown by themselves: {error}", file=sys.stderr)


class Runner:
    def __init__(self, channel, shell):
        self.channel = channel
        self.shell = shell
        self.foundations = Foundations()

    def serve(self):
        while True:
            body = next_message()
            if body is None:
                return
            message = DECODE(body.decode("utf-8"))
            if message["op"] == "activate":
                self.activate(message)
            elif message["op"] == "run":
                self.run(message)
            elif message["op"] == "freeze":
                self.freeze(message)
            elif message["op"] == "warm":
                self.warm(message)
            elif message["op"] == "renew":
                # The agent does not wait for it: what cannot be renewed is not a reason to end.
                with contextlib.suppress(Exception):
                    renew()
                self.channel.send({"t": "renewed"})

    def warm(self, message):
        """Loads what sessions load, as a zygote does, and stays."""
        scope = dict(globals(), __name__="sandpool_zygote")
        try:
            exec(compile(message["source"], "<sandpool zygote>", "exec"), scope)
            scope["warm"](self)
            self.rehearse()
            gc.collect()
            gc.freeze()
        except BaseException as error:
            self.channel.send({"t": "unfit", "why": clean(f"{type(error).__name__}: {error}", MAX_MESSAGE)})
            return
        self.channel.send({"t": "frozen"})

    def freeze(self, message):
        """Comes back as another process, started from what this one was."""
        scope = dict(globals(), __name__="sandpool_zygote")
        try:
            exec(compile(message["source"], "<sandpool zygote>", "exec"), scope)
            scope["freeze"](self, message)
        except BaseException as error:
            self.channel.send({"t": "unfit", "why": clean(f"{type(error).__name__}: {error}", MAX_MESSAGE)})
            return
        self.rehearse()
        self.channel.greet()

    def wake(self):
        """This process is a copy of one that was frozen: what belongs to a process and not to its memory is made anew."""
        self.channel.pid = getpid()
        self.foundations.open()
        signal.signal(signal.SIGINT, self.channel.on_interrupt)
        for number in (signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_IGN)
        with open("/proc/self/comm", "w") as file:
            file.write("python3")

    def rehearse(self):
        """Touches what a run touches, before anybody waits for one."""
        send, self.channel.send = self.channel.send, lambda *_: None
        try:
            with self.as_if_new():
                self.run({"code": "1", "fresh": False, "exec": "", "nonce": ""})
        finally:
            self.channel.send = send

    @contextlib.contextmanager
    def as_if_new(self):
        """What is run meanwhile leaves nothing that code could see later."""
        shell, history = self.shell, self.shell.history_manager
        # Not every version of IPython keeps all of them.
        lists = [getattr(history, name, []) for name in ("input_hist_parsed", "input_hist_raw", "db_input_cache")]
        dicts = [getattr(history, name, {}) for name in ("outputs", "exceptions", "output_hist_reprs")]
        dicts += [getattr(shell.compile, "_filename_map", {}), linecache.cache]
        lists, dicts = [(one, len(one)) for one in lists], [(one, set(one)) for one in dicts]
        recent = [(name, getattr(history, name)) for name in ("_i00", "_i", "_ii", "_iii")]
        count, restore = shell.execution_count, self.enter_fresh()
        try:
            yield
        finally:
            restore()
            shell.execution_count = count
            for one, length in lists:
                del one[length:]
            for one, names in dicts:
                for name in one.keys() - names:
                    del one[name]
            for name, value in recent:
                setattr(history, name, value)
            os.environ.pop("SANDPOOL_EXECUTION", None)
            forget_errors(shell)

    def activate(self, message):
        os.environ.update(dict(message["env"]))
        if message["seed"]:
            reseed(bytes.fromhex(message["seed"]))

    def run(self, message):
        channel, shell = self.channel, self.shell
        code, fresh = message["code"], message["fresh"]
        os.environ["SANDPOOL_EXECUTION"] = message["exec"]
        channel.nonce = message["nonce"]
        del message
        if getsignal(SIGINT) != channel.on_interrupt:
            signal.signal(SIGINT, channel.on_interrupt)
        shell.traceback_text = ""
        shell.displayhook.kept = None
        shell.says_none = False
        channel.is_interrupted = channel.was_interrupted = False
        restore = self.enter_fresh() if fresh else None
        event_loop()
        try:
            raised = self.evaluate(code, not fresh)
        except BaseException as error:
            raised = error
        channel.is_running = False
        # What is left to say needs whole foundations where something went wrong; else they are seen to when it has been said.
        if raised is not None:
            self.mend()
            self.finish(raised, restore)
        else:
            self.finish(raised, restore)
            self.mend()

    def mend(self):
        try:
            self.foundations.mend()
        except Exception:
            # What cannot be mended shows in the next run.
            pass

    def evaluate(self, code, is_stored):
        self.channel.is_running = True
        result = self.shell.lean.run(code, is_stored)
        if result is None:
            result = self.shell.run_cell(code, store_history=is_stored)
        raised = result.error_before_exec or result.error_in_exec
        if raised is None:
            self.shell.displayhook.send("value")
        return raised

    def finish(self, raised, restore):
        channel, shell = self.channel, self.shell
        if getpid() != channel.pid:
            # A copy made by os.fork, that ran to the end of the code.
            flush()
            os._exit(0 if raised is None else 1)
        if isinstance(raised, SystemExit) and raised.code in (None, 0):
            raised = None
        flush()
        if raised is not None:
            name = clean(type(raised).__name__, 200)
            try:
                text = str(raised)
            except Exception:
                text = ""
            trace = shell.traceback_text
            if not trace:
                trace = f"{name}: {text}" if text else name
                print(trace, file=sys.stderr, flush=True)
            channel.send(
                {
                    "t": "error",
                    "n": channel.nonce,
                    "name": name,
                    "message": clean(text, MAX_MESSAGE),
                    "traceback": clean(trace, MAX_TEXT),
                }
            )
        if restore is not None:
            restore()
        nonce, channel.nonce = channel.nonce, None
        channel.send({"t": "end", "n": nonce, "ok": raised is None})

    def enter_fresh(self):
        """Swaps the namespace for an empty one. Answers what swaps it back."""
        shell, history = self.shell, self.shell.history_manager
        kept = shell.user_module, shell.user_ns, sys.modules.get("__main__"), dict(shell.user_ns_hidden)
        outputs, history.output_hist = history.output_hist, {}
        hook = shell.displayhook
        recent = hook._, hook.__, hook.___
        shell.user_module, shell.user_ns = shell.prepare_user_module(types.ModuleType("__main__"))
        sys.modules["__main__"] = shell.user_module
        shell.init_user_ns()
        shell.user_ns["In"] = shell.user_ns["_ih"] = [""]
        hook._ = hook.__ = hook.___ = ""

        def restore():
            shell.user_module, shell.user_ns = kept[0], kept[1]
            sys.modules["__main__"] = kept[2]
            shell.user_ns_hidden.clear()
            shell.user_ns_hidden.update(kept[3])
            history.output_hist = outputs
            hook._, hook.__, hook.___ = recent

        return restore


# Where numpy's generator for all keeps its state: a Mersenne twister's, of 624 words and the place of the next
# (numpy/random/src/mt19937/mt19937.h). Known when numpy was there before the session.
NUMPY_STATE = []
WORDS = 624


def reseed(seed):
    random.seed(seed)
    for place in NUMPY_STATE:
        # Without numpy's own seeding, which takes a millisecond the first time.
        state = random.randbytes(4 * WORDS) + WORDS.to_bytes(4, sys.byteorder)
        ctypes.memmove(place, state, len(state))


def renew():
    """Nothing that was drawn before is drawn again."""
    fresh = os.urandom(64)
    reseed(fresh)
    numpy = sys.modules.get("numpy.random")
    if numpy is not None and not NUMPY_STATE:
        numpy.seed()
    ssl = sys.modules.get("ssl")
    if ssl is not None:
        # OpenSSL knows a copy by its process id alone, which is the same in every sandbox.
        ssl.RAND_add(fresh, 64.0)
    tempfile = sys.modules.get("tempfile")
    if tempfile is not None:
        tempfile._name_sequence = None
    uuid = sys.modules.get("uuid")
    if uuid is not None:
        uuid._last_timestamp = None
    threading.main_thread()._native_id = threading.get_native_id()


# What has been read and belongs to the next message.
UNREAD = bytearray()
# Bytes that are read at once: most messages are whole then.
PIECE = 1 << 16


def next_message():
    """The body of the next message, after its length; None when the agent is gone."""
    while True:
        if len(UNREAD) >= 4:
            end = 4 + int.from_bytes(UNREAD[:4], "little")
            if len(UNREAD) >= end:
                body = bytes(UNREAD[4:end])
                del UNREAD[:end]
                return body
        piece = read(FROM_AGENT, PIECE)
        if not piece:
            return None
        UNREAD.extend(piece)


def forget_errors(shell):
    """What a rehearsal leaves behind, as if nothing had failed yet."""
    for name in ("last_type", "last_value", "last_traceback", "last_exc"):
        if hasattr(sys, name):
            delattr(sys, name)
    shell.last_execution_succeeded = True
    shell.last_execution_result = None
    shell.traceback_text = ""
    shell.displayhook.kept = None


def main():
    for fd in (FROM_AGENT, TO_AGENT):
        os.set_inheritable(fd, False)
    channel = Channel()
    signal.signal(signal.SIGINT, channel.on_interrupt)
    sys.argv[:] = [""]
    sys.path.insert(0, "")
    shell = make_shell(channel)
    runner = Runner(channel, shell)
    # What the shell loads on its first run and its first error is loaded now.
    error, sys.stderr = sys.stderr, open(os.devnull, "w")
    try:
        with runner.as_if_new():
            shell.run_cell("1", store_history=False, silent=True)
            shell.run_cell("1 / 0", store_history=False, silent=True)
    finally:
        sys.stderr.close()
        sys.stderr = error
    warnings.filterwarnings("ignore", message="To exit: use")
    # autogen asks for the packages in this way, and takes what is on stderr for the first of them.
    warnings.filterwarnings("ignore", message="pkg_resources is deprecated as an API")
    sys.meta_path.insert(0, FiguresInline(shell))
    channel.greet()
    runner.serve()
    # The agent is gone, and with it everything that could be done for it.
    os._exit(0)


main()
