"""Bad input of every kind has a documented answer, and costs the server no memory."""

from __future__ import annotations

import json
import socket
import threading
import urllib.parse

import pytest
import requests

from sandpool import LEGACY, check_error, memory
from test_10_wire import too_large

LIMIT_MIB = 96


@pytest.mark.parametrize(
    "body",
    [b"", b"null", b"[]", b'"text"', b"{", b"{}", b"\xff\xfe", b'{"properties": null}', b'{"properties": []}', b"[" * 9999],
)
def test_a_body_that_is_none(python, session, body):
    for route in ("executions", "code/execute"):
        check_error(python.call("POST", route, session, data=body, headers={"Content-Type": "application/json"}), 400)
    assert python.call("GET", "session", session).status_code == 404, "no session was spent on it"


@pytest.mark.parametrize(
    "field, value",
    [
        ("code", 5),
        ("code", ["1"]),
        ("code", None),
        ("timeoutInSeconds", "soon"),
        ("timeoutInSeconds", 0),
        ("timeoutInSeconds", -1),
        ("timeoutInSeconds", 1e99),
        ("outputStreamsMaxLength", -5),
        ("outputStreamsMaxLength", "all"),
        ("useEmptyKernel", "perhaps"),
        ("codeInputType", 7),
        ("executionType", {}),
    ],
)
def test_a_field_of_a_wrong_kind(python, session, field, value):
    for route in ("executions", "code/execute"):
        check_error(python.call("POST", route, session, json={"code": "1", field: value}), 400)


def test_what_belongs_to_another_kind_of_pool(python, node, shell, session):
    check_error(shell.call("POST", "executions", session, json={"code": "1"}), 400, "SessionPropertiesMissing")
    check_error(python.call("POST", "executions", session, json={"shellCommand": "ls"}), 400)
    check_error(node.call("POST", "executions", session, json={"shellCommand": "ls"}), 400)
    check_error(shell.call("POST", "code/execute", session, LEGACY, json={"properties": {"code": "1"}}), 400)
    both = {"shellCommand": "ls", "execCommandAndArgs": ["ls"]}
    check_error(shell.call("POST", "executions", session, json=both), 400)
    for argv in ([], "ls", [1]):
        check_error(shell.call("POST", "executions", session, json={"execCommandAndArgs": argv}), 400)
    # The tutorial sends these beside it.
    beside = {"shellCommand": "echo 1", "codeInputType": "inline", "executionType": "synchronous"}
    assert shell.modern(session, **beside)["result"]["stdout"] == "1\n"


def test_what_is_not_there(server, python, session):
    for method, route in [("GET", "nothing"), ("POST", "executions/x/y/z"), ("PUT", "x/y"), ("DELETE", "pools")]:
        check_error(python.call(method, route, session), 404)
    check_error(server.pool("nopool").call("POST", "executions", session, json={"code": "1"}), 404)
    check_error(python.call("GET", "session", session), 404, "NoSessionFoundError")
    check_error(python.call("DELETE", "session", session), 404, "NoSessionFoundError")
    check_error(python.call("GET", f"executions/{'0' * 8}-0000-4000-8000-{'0' * 12}", session), 404)
    python.legacy("1", session)
    for unknown in ("00000000-0000-4000-8000-000000000000", "no-uuid"):
        check_error(python.call("GET", f"executions/{unknown}", session), 404, "ExecutionNotFound")
    for route in ("files/none.txt", "files/none.txt/content", "files/content/none.txt"):
        check_error(python.call("GET", route, session), 404, "FileNotFound")
    check_error(python.call("DELETE", "files/none.txt", session), 404, "FileNotFound")


def test_methods_that_are_none(python, session):
    for method, route in [("GET", "code/execute"), ("PUT", "executions"), ("DELETE", "listSessions"), ("PATCH", "files")]:
        answer = python.call(method, route, session)
        assert answer.status_code in (404, 405), answer.text
        check_error(answer, answer.status_code)


@pytest.mark.parametrize("version", ["latest", "2024", "2024-13-45x", "../..", "2024-02-02-PREVIEW-2"])
def test_an_api_version_that_is_no_date_is_refused_or_taken_for_none(python, session, version):
    answer = python.call("POST", "executions", session, version, json={"code": "6 * 7"})
    if answer.status_code == 200:
        assert answer.json()["result"]["executionResult"] == 42
    else:
        check_error(answer, 400)


@pytest.mark.parametrize("path", ["..", "../..", "a/../b", "/etc/..", "a/./b", "./..", "/mnt/data/../../etc"])
def test_a_path_does_not_leave_the_session(python, session, path):
    upload = python.call("POST", "files", session, params={"path": path}, files={"file": ("x.txt", b"1")})
    check_error(upload, upload.status_code)
    assert upload.status_code in (400, 403, 404)
    listed = python.call("GET", "files", session, params={"path": path})
    assert listed.status_code in (400, 403, 404), listed.text


@pytest.mark.parametrize("path", ["/etc", "/root", "etc"])
def test_an_absolute_path_is_one_of_the_sessions_data(python, session, path):
    assert python.call("POST", "files", session, params={"path": path}, files={"file": ("x.txt", b"1")}).status_code == 200
    found = python.legacy(f"open('/mnt/data/{path.strip('/')}/x.txt').read()", session)
    assert found["result"] == "1", found


@pytest.mark.parametrize("name", ["..", ".", "a/b", "../../etc/passwd", "/etc/passwd", "a\\..\\b", "%00"])
def test_a_name_does_not_leave_its_directory(python, session, name):
    quoted = urllib.parse.quote(name, safe="")
    for method, route in [("GET", f"files/{quoted}/content"), ("GET", f"files/{quoted}"), ("DELETE", f"files/{quoted}")]:
        status, text = python.raw(method, f"/{route}?identifier={session}&api-version=2025-10-02-preview")
        assert status in (400, 403, 404), (route, status, text)
        assert b"root:" not in text


def test_a_link_out_of_the_session_leads_nowhere(python, session):
    python.legacy("import os; os.symlink('/etc/shadow', '/mnt/data/link'); os.symlink('/proc/1', '/mnt/data/dir')", session)
    answer = python.call("GET", "files/link/content", session)
    assert answer.status_code in (400, 403, 404, 409), answer.text
    assert b"root:" not in answer.content


def test_half_a_request_and_none_hold_nobody_up(server, python, session):
    address = urllib.parse.urlsplit(server.endpoint)
    sockets = []
    for data in [b"", b"GET", b"POST /x HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf", b"\x16\x03\x01\x02\x00"]:
        for _ in range(20):
            connection = socket.create_connection((address.hostname, address.port), timeout=10)
            connection.sendall(data)
            sockets.append(connection)
    assert python.legacy("6 * 7", session)["result"] == 42
    for connection in sockets:
        connection.close()


@pytest.mark.parametrize(
    "request_text",
    [
        b"GARBAGE\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 1_000_000 + b"\r\n\r\n",
    ],
)
def test_what_is_no_http_is_refused(server, request_text):
    address = urllib.parse.urlsplit(server.endpoint)
    with socket.create_connection((address.hostname, address.port), timeout=20) as connection:
        try:
            connection.sendall(request_text)
            answer = connection.recv(100)
        except (ConnectionResetError, BrokenPipeError):
            answer = b""
    assert answer == b"" or answer.split()[1][:1] == b"4", answer
    assert requests.get(server.endpoint + "/healthz", timeout=5).status_code == 200


def test_memory_stays_bounded_while_giants_come(server, python, session):
    """Uploads that are too large, and bodies of JSON that are, four at a time: the server keeps none of it."""
    python.legacy("1", session)
    pid = server.process()
    before = memory(pid)
    peak = [0]
    stop = threading.Event()

    def watch():
        while not stop.wait(0.02):
            peak[0] = max(peak[0], memory(pid))

    watcher = threading.Thread(target=watch)
    watcher.start()
    failures = []

    def giant(kind: str):
        try:
            if kind == "file":
                assert too_large(python, session) == 413
            elif kind == "json":
                body = b'{"code": "' + b"a" * (64 << 20) + b'"}'
                answer = python.call("POST", "executions", session, data=body, headers={"Content-Type": "application/json"})
                assert answer.status_code in (400, 413), answer.text
            else:
                body = b"[" * (32 << 20)
                answer = python.call("POST", "code/execute", session, data=body, headers={"Content-Type": "application/json"})
                assert answer.status_code in (400, 413), answer.text
        except requests.ConnectionError:
            pass  # It stopped listening: that is a refusal too.
        except BaseException as error:  # noqa: BLE001 - told below
            failures.append(error)

    threads = [threading.Thread(target=giant, args=(kind,)) for kind in ("file", "file", "json", "brackets")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
    stop.set()
    watcher.join()
    assert not failures, failures
    assert server.process() == pid, "it is the same process"
    assert peak[0] - before < LIMIT_MIB << 20, f"{(peak[0] - before) >> 20} MiB more while giants came"
    assert python.legacy("6 * 7", session)["result"] == 42


def test_a_giant_answer_is_cut_and_costs_no_memory(server, python, session):
    pid = server.process()
    before = memory(pid)
    answer = python.modern(session, code="for _ in range(200): print('x' * 1_000_000)", timeoutInSeconds=60)
    assert answer["result"]["stdout"].endswith("...")
    assert memory(pid) - before < LIMIT_MIB << 20
    assert len(json.dumps(answer)) < 10_000
