import ctypes, errno, fcntl, glob, hashlib, mmap, os, re, resource, select, signal, socket, stat, struct, subprocess
import sys, threading, time

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long
libc.mmap.restype = ctypes.c_void_p


def word(number):
    return errno.errorcode.get(number, str(number))


def call(number, *arguments):
    """A system call by its number: "ok", or the error's name."""
    given = [a if isinstance(a, (bytes, ctypes.Array, ctypes.Structure)) else ctypes.c_long(a) for a in arguments]
    ctypes.set_errno(0)
    return word(ctypes.get_errno()) if libc.syscall(ctypes.c_long(number), *given) == -1 else "ok"


def attempt(function, *arguments, **named):
    try:
        function(*arguments, **named)
        return "ok"
    except OSError as error:
        return word(error.errno)
    except (MemoryError, subprocess.SubprocessError, RuntimeError, ValueError) as error:
        return type(error).__name__


def child(function):
    """How a child ends that does this."""
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(function() or 0)
        except BaseException:
            os._exit(99)
    status = os.waitpid(pid, 0)[1]
    return f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"exit {os.WEXITSTATUS(status)}"


def machine(code):
    """Runs machine code in a child."""

    def inside():
        page = libc.mmap(None, ctypes.c_size_t(4096), 7, 0x22, -1, ctypes.c_long(0))
        ctypes.memmove(page, code, len(code))
        return ctypes.CFUNCTYPE(ctypes.c_int)(page)() & 127

    return child(inside)


def text(path):
    with open(path) as file:
        return file.read()


def status(name, pid="self"):
    return next(line.split(":")[1].strip() for line in text(f"/proc/{pid}/status").splitlines() if line.startswith(name + ":"))


def mounts():
    """Mount point, options, kind, and source of each mount."""
    for line in text("/proc/self/mountinfo").splitlines():
        front, back = line.split(" - ")
        front, back = front.split(), back.split()
        yield front[4], set(front[5].split(",")), back[0], line


def tell(*what):
    print(*what, sep="\n", flush=True)
