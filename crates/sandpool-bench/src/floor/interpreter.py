"""The least that runs a session's code: what our own interpreter is measured against. No walls, no rich output.

Standard input is a stream socket. Each message on it asks for a fork and brings the new interpreter's own socket along;
the answer is its pid. The libraries are imported once, here.
"""

import ast
import ctypes
import gc
import io
import json
import os
import signal
import socket
import sys

import matplotlib.figure
import matplotlib.pyplot
import numpy
import pandas


def serve(stream):
    """Runs what comes, one JSON text a line, and answers with what it printed."""
    names = {"__name__": "__main__"}
    for line in stream.makefile("rb"):
        printed = io.StringIO()
        kept, sys.stdout = sys.stdout, printed
        try:
            exec(compile(ast.parse(json.loads(line)["code"]), "<cell>", "exec"), names)
        finally:
            sys.stdout = kept
        stream.sendall(json.dumps({"stdout": printed.getvalue()}).encode() + b"\n")


def warm():
    """What a session does first, done once before anybody waits for it."""
    numpy.ones((8, 8)) @ numpy.ones((8, 8))
    pandas.DataFrame({"a": [1, 2]}).describe()
    matplotlib.figure.Figure().subplots()
    here, there = socket.socketpair()
    here.sendall(b'{"code": "print(1)"}\n')
    here.shutdown(socket.SHUT_WR)
    serve(there)


def main():
    asked = socket.socket(fileno=0)
    # The C library's own fork, without what Python and its libraries do in a child: the least there is.
    fork = ctypes.PyDLL(None).fork
    warm()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    gc.collect()
    gc.disable()
    gc.freeze()
    asked.sendall(b"ready\n")
    while True:
        word, fds, _, _ = socket.recv_fds(asked, 1, 1)
        if not word:
            return
        pid = fork()
        if pid == 0:
            asked.close()
            gc.enable()
            serve(socket.socket(fileno=fds[0]))
            os._exit(0)
        os.close(fds[0])
        asked.sendall(pid.to_bytes(4, "little"))


main()
