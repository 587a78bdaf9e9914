"""Freezes a warm interpreter into a file that is a program, and wakes what is started from it.

The layout of the file is that of `sandpool_sys::frozen`; what is in it is decided here. The runner executes this text
in a namespace that has the runner's names, and calls `freeze`.
"""

import contextlib
import ctypes
import gc
import importlib
import mmap
import struct

FILE = 6
PAGE = 4096
# Where nothing else lies: above a program and its heap, below libraries and stacks. The kernel puts the end of the
# heap behind it, and so above the frozen one, where the C library takes it for memory that somebody else made.
BASE = 0x6000_0000_0000
THAWER, TABLE, REGIONS = 64 + 2 * 56, 4096, 256
MAX_REGIONS = 8000
# The most that a main thread's stack may grow to: the usual soft limit, which is the sandbox's too.
STACK = 8 << 20
# How far the heap may have grown between the look at the map and the freezing.
HEAP_MARGIN = 1 << 20
# Empty pages in a row that are worth a region of their own.
GAP = 16
PRIVATE, DROPPABLE, ANONYMOUS, NORESERVE, FIXED_NOREPLACE = 0x02, 0x08, 0x20, 0x4000, 0x100000
WIPE_ON_FORK = 18
WARM = ("numpy", "pandas", "matplotlib", "matplotlib.pyplot")
# Memory of one thread is all that can be frozen: OpenBLAS starts a thread for each processor when it is loaded, and the
# allocator in pyarrow one that tidies up. Programs that a session starts are not told.
ALONE = {"OPENBLAS_NUM_THREADS": "1", "JE_ARROW_MALLOC_CONF": "background_thread:false"}
# Asked for by almost everything that is written, and made of Python alone.
PLAIN = ("collections", "csv", "datetime", "decimal", "fractions", "functools", "itertools", "json", "math", "pathlib",
         "re", "statistics", "string", "textwrap", "time", "typing", "zoneinfo")
# What sessions do, and how often it is done before: the first is seldom done often, the last is what a session begins with.
REHEARSAL = (
    (3, (
        "import numpy as np, pandas as pd\n"
        "_f = pd.DataFrame({'a': np.arange(6.0), 'b': list('xyzxyz')})\n"
        "_f.describe(), _f.groupby('b').sum(), np.ones((8, 8)) @ np.ones((8, 8))\n"
        "_f",
        "import matplotlib.pyplot as plt\nplt.plot([1, 2, 3])\nplt.title('t')\nplt.show()",
        "1 / 0",
    )),
    (40, ("import numpy, pandas, matplotlib\nprint(1)", "x = 1\nfor i in range(3):\n    print(i)\nx + i")),
    (60, ("print(1)", "1 + 1", "1")),
)  # fmt: skip


class Unfit(Exception):
    """Why this interpreter cannot be frozen."""


def warm(runner):
    """Loads what sessions load, and does once what they will do."""
    os.environ.update(ALONE)
    try:
        for name in WARM + PLAIN:
            try:
                importlib.import_module(name)
            except ImportError:
                pass
    finally:
        for name in ALONE:
            del os.environ[name]
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        # Also forgets what is left of a pair of normal numbers.
        numpy.random.seed()
        generator = numpy.random.mtrand._rand._bit_generator
        if type(generator).__name__ == "MT19937":
            NUMPY_STATE.append(generator.ctypes.state_address)
        else:
            raise Unfit("numpy's generator for all is another than is known")
    for often, codes in REHEARSAL:
        with runner.as_if_new():
            rehearse(runner, often, codes)
        forget_loop()
    pyplot = sys.modules.get("matplotlib.pyplot")
    if pyplot is not None:
        pyplot.close("all")
        # Fonts are kept with their files open.
        fonts = sys.modules["matplotlib.font_manager"]
        for name in ("_get_font", "get_font"):
            clear = getattr(getattr(fonts, name, None), "cache_clear", None)
            if clear is not None:
                clear()


def rehearse(runner, often, codes):
    """Does what the agent will ask for as it will ask for it, again and again, and what follows a start.

    CPython's code changes as long as it gets to know what it works on. What has settled before the freezing is not
    written to later, and stays shared.
    """
    script = io.BytesIO()
    for number in range(often):
        asked = [{"op": "activate", "env": [], "seed": "00" * 32}]
        asked += [
            {"op": "run", "nonce": f"{number}", "exec": "1-1", "code": code, "fresh": fresh}
            for code in codes
            for fresh in (True, False)
        ]
        for message in asked:
            text = json.dumps(message).encode()
            script.write(len(text).to_bytes(4, "little") + text)
    instead = {FROM_AGENT: os.memfd_create("script"), TO_AGENT: os.open(os.devnull, os.O_WRONLY)}
    instead |= {1: instead[TO_AGENT], 2: instead[TO_AGENT]}
    os.write(instead[FROM_AGENT], script.getbuffer())
    os.lseek(instead[FROM_AGENT], 0, os.SEEK_SET)
    kept = {fd: os.dup(fd) for fd in instead}
    runner.foundations.close()
    try:
        for fd, other in instead.items():
            os.dup2(other, fd, fd < FROM_AGENT)
        for _ in range(often):
            renew()
            runner.wake()
            event_loop()
            forget_loop()
            runner.foundations.close()
        runner.foundations.open()
        runner.serve()
        for _ in range(often):
            runner.rehearse()
    finally:
        flush()
        for fd, other in kept.items():
            os.dup2(other, fd, fd < FROM_AGENT)
        for fd in {*instead.values(), *kept.values()}:
            os.close(fd)
        # Of the descriptors as they are again.
        runner.foundations.close()
        runner.foundations.open()


def forget_loop():
    if LOOP:
        LOOP.pop().close()
        asyncio.set_event_loop(None)


def make_immortal():
    """Ends the counting of references to what is alive: for each that comes and goes its page would be written to.

    As CPython itself does with `None` (PEP 683). Every object has its count first; what is in it when nobody counts is
    of the versions in `UNCOUNTED_IN`.
    """
    count = ctypes.c_uint64.from_address(id(None)).value
    if sys.version_info[:2] not in UNCOUNTED_IN or count != UNCOUNTED:
        return
    memset = ctypes.CDLL(None).memset
    memset.restype, memset.argtypes = None, [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
    counted_at, referents, code = ctypes.c_uint32.from_address, gc.get_referents, types.CodeType
    todo = gc.get_objects()
    while todo:
        one = todo.pop()
        place = id(one)
        if type(one) in COUNTED or counted_at(place).value == UNCOUNTED:
            continue
        memset(place, 0xFF, 4)
        if type(one) is code:
            todo += [getattr(one, name) for name in CODE_PARTS]
        else:
            todo += referents(one)


def fill_holes():
    """Takes every free piece of memory between what is in use, for ever.

    What is asked for later then comes from one place behind all of it. Else each small object of a session would be
    put into a hole in a page of its own, and the session would have that page for itself (measured: 2 MiB of 8).
    """
    # Of Python's own allocator: in every class of sizes as many as there are holes.
    for size, count in free_blocks():
        KEPT.append([bytes(size - BYTES) for _ in range(count)])
    # Of the C library's: the largest first, so that what is left of a large hole is taken by smaller ones.
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.restype, libc.free.argtypes = None, [ctypes.c_void_p]
    large = 1 << 16
    behind_all = max(libc.malloc(large) or 0 for _ in range(8))
    for size in (*range(large, 1 << 12, -(1 << 12)), *range(1 << 12, 1 << 10, -128), *range(1 << 10, 0, -16)):
        while (place := libc.malloc(size)) is not None and place < behind_all:
            pass
        libc.free(place)


# How CPython marks an object that lives for ever, and where: Include/refcount.h, _Py_IMMORTAL_REFCNT.
UNCOUNTED, UNCOUNTED_IN = 0xFFFF_FFFF, ((3, 12), (3, 13))
# What runs now ends.
COUNTED = (types.FrameType, types.GeneratorType, types.CoroutineType, types.TracebackType)
CODE_PARTS = ("co_consts", "co_names", "co_varnames", "co_freevars", "co_cellvars", "co_filename", "co_name", "co_qualname",
              "co_linetable", "co_exceptiontable", "co_code")  # fmt: skip
KEPT = []
WIPED = []
MADVISE = ctypes.CDLL(None).madvise
MADVISE.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
# What an empty `bytes` takes.
BYTES = sys.getsizeof(b"")


def free_blocks():
    """Sizes of Python's allocator, and how many free blocks each has in pages that are in use."""
    out, error = os.memfd_create("statistics"), os.dup(2)
    os.dup2(out, 2)
    try:
        sys._debugmallocstats()
    finally:
        os.dup2(error, 2)
        os.close(error)
    text = os.pread(out, 1 << 20, 0).decode()
    os.close(out)
    rows = [line.split() for line in text.splitlines()]
    # Class, size, pages, blocks in use, blocks free.
    rows = [[int(word) for word in row] for row in rows if len(row) == 5 and all(word.isdigit() for word in row)]
    return [(size, free) for _, size, _, _, free in rows if size > BYTES]


def check_alone():
    """ZG3: nothing is open but what the sandbox after this one has too, and nobody else runs in this process."""
    threads = os.listdir("/proc/self/task")
    if len(threads) > 1:
        names = []
        for thread in threads:
            with open(f"/proc/self/task/{thread}/comm") as file:
                names.append(file.read().strip())
        raise Unfit(f"it has threads: {', '.join(names)}")
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            found.append((int(name), os.readlink(f"/proc/self/fd/{name}")))
        except FileNotFoundError:
            # The directory that was read.
            pass
    others = [target for number, target in found if number not in (0, 1, 2, FROM_AGENT, TO_AGENT, FILE)]
    if others:
        raise Unfit(f"it has files open: {', '.join(others)}")


def read_map():
    with open("/proc/self/maps", "rb", buffering=0) as file:
        pieces = []
        while piece := file.read(1 << 16):
            pieces.append(piece)
    return b"".join(pieces).decode()


def without_heap_end(text):
    return [line.split("-", 1)[0] if line.endswith("[heap]") else line for line in text.splitlines()]


class Plan:
    """What of the memory that `text` lists is mapped where, and from which place in the file."""

    def __init__(self, text):
        self.regions, self.vdso, self.pieces = [], 0, []
        self.wiped = wiped_on_fork()
        self.heap_end = 0
        self.end = TABLE + REGIONS + 32 * MAX_REGIONS + PAGE & -PAGE
        with page_map() as self.pagemap:
            for line in text.splitlines():
                parts = line.split(None, 5)
                low, high = (int(part, 16) for part in parts[0].split("-"))
                self.add(low, high, parts[1], parts[5].strip() if len(parts) > 5 else "")
        if len(self.regions) > MAX_REGIONS:
            raise Unfit(f"its memory has {len(self.regions)} regions")

    def add(self, low, high, rights, name):
        if name == "[vsyscall]":
            return
        if name.startswith("[v"):
            self.pieces.append((low, high - low))
            if name == "[vdso]":
                self.vdso = low
            return
        kind = self.wiped.get(low)
        if kind is not None:
            # Made so that no copy of a process ever has what is in it, such as the C library's generator of random
            # numbers: nor may this kind of copy. It is there, of the same kind, and empty.
            flags = (DROPPABLE if "dp" in kind else PRIVATE) | FIXED_NOREPLACE | NORESERVE | ANONYMOUS
            self.regions.append((low, high - low, 3, flags, 0))
            return
        protection = sum(bit for letter, bit in zip("rwx", (1, 2, 4)) if letter in rights)
        if not protection & 1:
            self.empty(low, high, protection)
        elif name == "[stack]":
            self.empty(high - STACK, low, protection)
            self.full(low, high, protection)
        elif name == "[heap]":
            self.heap_end = high + HEAP_MARGIN
            self.full(low, self.heap_end, protection)
        elif name.startswith("/"):
            # Of a library what is read lies before and behind what is executed: mapped alike they are one region. Nothing is
            # won by a difference, where code of anybody's choice runs anyway.
            self.full(low, high, protection if protection & 2 else 5)
        else:
            self.by_pages(low, high, protection)

    def full(self, low, high, protection):
        flags = PRIVATE | FIXED_NOREPLACE | NORESERVE
        before = self.regions[-1] if self.regions else (0, 0, 0, 0, 0)
        if (before[0] + before[1], *before[2:4]) == (low, protection, flags):
            # Beside each other in memory and in the file: one call maps both.
            self.regions[-1] = (before[0], before[1] + high - low, *before[2:])
        else:
            self.regions.append((low, high - low, protection, flags, self.end))
        self.end += high - low

    def empty(self, low, high, protection):
        if high > low:
            flags = PRIVATE | FIXED_NOREPLACE | NORESERVE | ANONYMOUS
            self.regions.append((low, high - low, protection, flags, 0))

    def by_pages(self, low, high, protection):
        """Memory that was asked for and hardly touched stays as empty as it is."""
        at = start = low
        last = None
        for page, is_there in self.pages(low, high):
            if not is_there:
                continue
            if last is None:
                start = page
            elif page - last > GAP * PAGE:
                self.empty(at, start, protection)
                self.full(start, last + PAGE, protection)
                at, start = last + PAGE, page
            last = page
        if last is not None:
            self.empty(at, start, protection)
            self.full(start, last + PAGE, protection)
            at = last + PAGE
        self.empty(at, high, protection)

    def was_touched(self):
        """Whether something was written since, where the plan has nothing."""
        with page_map() as self.pagemap:
            empty = [
                (at, length)
                for at, length, protection, flags, _ in self.regions
                if flags & ANONYMOUS and protection & 1 and at not in self.wiped
            ]
            return any(is_there for at, length in empty for _, is_there in self.pages(at, at + length))

    def pages(self, low, high):
        for first in range(low, high, 512 * PAGE):
            count = min(512, (high - first) // PAGE)
            data = os.pread(self.pagemap, 8 * count, first // PAGE * 8)
            for index, (entry,) in enumerate(struct.iter_unpack("<Q", data)):
                # Present or swapped.
                yield first + index * PAGE, entry >> 62 != 0


def wiped_on_fork():
    """Where memory begins that a fork does not copy but empties, and the kernel's flags of it."""
    found, start = {}, 0
    with open("/proc/self/smaps") as file:
        for line in file:
            name, _, rest = line.partition(" ")
            if name == "VmFlags:":
                if not {"wf", "dp"}.isdisjoint(rest.split()):
                    found[start] = rest.split()
            elif not name.endswith(":"):
                start = int(name.split("-")[0], 16)
    return found


@contextlib.contextmanager
def page_map():
    fd = os.open("/proc/self/pagemap", os.O_RDONLY)
    try:
        yield fd
    finally:
        os.close(fd)


def plan():
    """A plan of memory as it is: making one takes memory too, so until it takes no more."""
    text = read_map()
    for _ in range(20):
        planned, now = Plan(text), read_map()
        if without_heap_end(now) == without_heap_end(text):
            return planned, text
        text = now
    raise Unfit("its memory does not come to rest")


def thread_fields():
    """What the C library told the kernel of this thread, for `sandpool_sys::frozen`'s table from offset 40 on."""
    libc = ctypes.CDLL(None, use_errno=True)
    robust, length = ctypes.c_void_p(), ctypes.c_size_t()
    thread = ctypes.c_ulong()
    # get_robust_list(2), and arch_prctl(2) with ARCH_GET_FS.
    if libc.syscall(274, 0, ctypes.byref(robust), ctypes.byref(length)) or libc.syscall(
        158, 0x1003, ctypes.byref(thread)
    ):
        raise Unfit("its thread cannot be read")
    robust = robust.value or 0
    # The thread's id lies before the list of robust locks in the C library's record of a thread, and is what it says.
    own = threading.get_native_id()
    places = [at for at in range(robust - 64, robust, 4) if ctypes.c_int.from_address(at).value == own] if robust else []
    try:
        offset = ctypes.c_long.in_dll(libc, "__rseq_offset").value
        size = ctypes.c_uint.in_dll(libc, "__rseq_size").value
        # Registered with the size of the first version, of which the known part is told (rseq(2), glibc 2.35).
        area = (thread.value + offset, 32) if size else (0, 0)
    except ValueError:
        area = (0, 0)
    try:
        heap = ctypes.addressof(ctypes.c_void_p.in_dll(libc, "__curbrk"))
    except ValueError:
        raise Unfit("its C library does not say where the heap ends") from None
    return places[0] if len(places) == 1 else 0, robust, length.value if robust else 0, *area, heap


def program(thawer, length):
    """The head of the file: an ELF header, a program header for all of the head and one for a stack without code."""
    header = b"\x7fELF\2\1\1" + bytes(9)
    header += struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, BASE + THAWER, 64, 0, 0, 64, 56, 2, 0, 0, 0)
    header += struct.pack("<IIQQQQQQ", 1, 5, 0, BASE, BASE, length, length, PAGE)
    header += struct.pack("<IIQQQQQQ", 0x6474E551, 6, 0, 0, 0, 0, 0, 16)
    return (header + thawer).ljust(TABLE, b"\0")


def freeze(runner, message):
    """Ends this process once its memory is in the file. Comes back in every process that is started from there."""
    gc.disable()
    warm(runner)
    runner.foundations.close()
    thawer, freezer = bytes.fromhex(message["thawer"]), bytes.fromhex(message["freezer"])
    code = mmap.mmap(-1, PAGE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(freezer)
    address = ctypes.addressof(ctypes.c_char.from_buffer(code))
    call = ctypes.PYFUNCTYPE(ctypes.c_long, ctypes.c_void_p, ctypes.c_int)(address)
    table = ctypes.create_string_buffer(REGIONS + 32 * MAX_REGIONS)
    fields = thread_fields()
    # What is alive now lives for ever: the collector leaves it alone, nobody counts who uses it, and its pages stay shared.
    gc.collect()
    make_immortal()
    gc.freeze()
    fill_holes()
    check_alone()
    for _ in range(8):
        changes = write(call, table, fields, thawer)
        if changes is None:
            return wake(runner)
        if not changes:
            runner.channel.send({"t": "frozen"})
            os._exit(0)
    raise Unfit(f"its memory changed while it was written: {changes[:4]}")


def write(call, table, fields, thawer):
    """Writes the file. Answers what changed in the map of memory meanwhile; None in a process started from the file."""
    planned, text = plan()
    struct.pack_into("<QQ", table, 0, 0, len(planned.regions))
    struct.pack_into("<6Q", table, 40, *fields)
    struct.pack_into("<QQQ", table, 88, planned.vdso, 0, len(planned.pieces))
    for index, (start, length) in enumerate(planned.pieces[:8]):
        struct.pack_into("<qQ", table, 112 + 16 * index, start - planned.vdso, length)
    for index, region in enumerate(planned.regions):
        struct.pack_into("<QQIIQ", table, REGIONS + 32 * index, *region)
    head = program(thawer, TABLE + REGIONS + 32 * len(planned.regions))
    os.ftruncate(FILE, 0)
    os.ftruncate(FILE, planned.end)
    os.pwrite(FILE, head, 0)
    WIPED[:] = [region[:2] for region in planned.regions if region[0] in planned.wiped]
    result = call(ctypes.addressof(table), FILE)
    if result == 1:
        return None
    if result < 0:
        raise Unfit(f"its memory could not be written: {os.strerror(-result)}")
    now = read_map()
    changes = set(without_heap_end(now)) ^ set(without_heap_end(text))
    if heap_end(now) > planned.heap_end:
        changes.add("the heap grew")
    if planned.was_touched():
        changes.add("empty pages were written to")
    return sorted(changes)


def heap_end(text):
    ends = [line.split()[0].split("-")[1] for line in text.splitlines() if line.endswith("[heap]")]
    return int(ends[0], 16) if ends else 0


def wake(runner):
    """In a process of its own, in another sandbox."""
    for start, length in WIPED:
        MADVISE(start, length, WIPE_ON_FORK)
    renew()
    runner.wake()
    gc.enable()
