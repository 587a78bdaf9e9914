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


def ask(address, host=None, port=80, version="1.1"):
    """What an HTTP server says that is asked there for a host: its status, or why there is none."""
    if host is None:
        host = f"[{address.partition('%')[0]}]" if ":" in address else address
    try:
        with socket.create_connection((address, port), 10) as there:
            there.sendall(f"GET / HTTP/{version}\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode("latin-1"))
            return (there.recv(4096).split(b" ") + [b"", b"closed"])[1].decode() or "closed"
    except OSError as error:
        return "closed" if isinstance(error, ConnectionResetError) else word(error.errno) if error.errno else type(error).__name__


def through(target, port=3128):
    """What a proxy says that is asked for a tunnel."""
    try:
        with socket.create_connection(("127.0.0.1", port), 10) as there:
            there.sendall(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode("latin-1"))
            return (there.recv(4096).split(b" ") + [b"", b"closed"])[1].decode() or "closed"
    except OSError as error:
        return "closed" if isinstance(error, ConnectionResetError) else word(error.errno)


def socks(kind, address, port):
    """The answer of a SOCKS 5 proxy: its code."""
    with socket.create_connection(("127.0.0.1", 1080), 10) as there:
        there.sendall(b"\x05\x01\x00")
        if there.recv(2) != b"\x05\x00":
            return "closed"
        there.sendall(b"\x05\x01\x00" + bytes([kind]) + address + struct.pack(">H", port))
        return str((there.recv(64) + b"\0\0")[1])


def hello(name, address):
    """What a TLS client hears that asks for a name there."""
    import ssl

    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with socket.create_connection((address, 443), 10) as there:
            with context.wrap_socket(there, server_hostname=name):
                return "open"
    except ssl.SSLError as error:
        return error.reason or "closed"
    except OSError as error:
        return "closed" if error.errno in (None, errno.ECONNRESET) else word(error.errno)
