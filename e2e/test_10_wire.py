"""Section 10 of the wire reference, items 2 to 9, by number."""

from __future__ import annotations

import json
import math
import re
import urllib.parse
import uuid

import pytest
import requests

from sandpool import LEGACY, MODERN, check_error, wait_for

VERSIONS = ["2023-08-01-preview", LEGACY, "2024-10-02-preview", "2025-02-02-preview", MODERN, "2026-01-01", None]
SIGNS = "_|}{[]:\";'<>?/.,@#$%^&*()-+=!~`"
LIMIT = 128 << 20


# 10.2: audiences, expired token, no role


@pytest.mark.parametrize("audience", ["https://dynamicsessions.io", "https://acasessions.io"])
@pytest.mark.parametrize("end", ["", "/", "/.default"])
def test_10_2_both_audiences_are_good(server, python, session, audience, end):
    variables = server.env()
    given = requests.get(
        variables["IDENTITY_ENDPOINT"],
        params={"resource": audience + end, "api-version": "2019-08-01"},
        headers={"X-IDENTITY-HEADER": variables["IDENTITY_HEADER"]},
        timeout=10,
    )
    assert given.status_code == 200, given.text
    token = given.json()["access_token"]
    assert python.call("POST", "executions", session, json={"code": "1"}, token=token).status_code == 200


def test_10_2_without_a_good_token_nothing_is_done(server, python, session):
    header, claims, signature = server.bearer.split(".")
    bad = {
        "none": None,
        "empty": " ",
        "no JWT": "local",
        "another signature": f"{header}.{claims}.{signature[::-1]}",
        "no signature": f"eyJhbGciOiJub25lIn0.{claims}.",
    }
    for why, token in bad.items():
        for method, route, more in [
            ("POST", "executions", {"json": {"code": "1"}}),
            ("GET", "files", {}),
            ("DELETE", "session", {}),
            ("POST", "files", {"files": {"file": ("a", b"a")}}),
        ]:
            answer = python.call(method, route, session, token=token, **more)
            check_error(answer, 401)
            assert answer.headers["www-authenticate"].startswith("Bearer"), why
    # Nothing of this made a session.
    assert python.call("GET", "session", session).status_code == 404


def test_10_2_a_role_that_is_too_small_is_named(server, python, session):
    reader = server.token("--role", "reader")
    body = check_error(python.call("POST", "executions", session, json={"code": "1"}, token=reader), 403)
    assert "executor" in body["message"] and "reader" in body["message"]
    elsewhere = server.token("--pool", "node")
    assert "python" in check_error(python.call("GET", "files", session, token=elsewhere), 403)["message"]
    bound = server.token("--session", session)
    assert python.call("POST", "executions", session, json={"code": "1"}, token=bound).status_code == 200
    check_error(python.call("POST", "executions", session + "x", json={"code": "1"}, token=bound), 403)
    # The identifier of the body is no way around.
    inside = python.call("POST", "code/execute", json={"properties": {"code": "1", "identifier": session + "x"}}, token=bound)
    check_error(inside, 403)


# 10.3: envelopes, versions, order, slashes, raw identifiers


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("wrapped", [True, False])
@pytest.mark.parametrize("route", ["code/execute", "executions", "execute", "python/execute"])
def test_10_3_every_code_route_takes_both_envelopes_on_every_version(python, shared, route, wrapped, version):
    body = {"codeInputType": "Inline", "executionType": "Synchronous", "code": "print('out'); 6 * 7"}
    answer = python.call("POST", route, shared, version, json={"properties": body} if wrapped else body)
    assert answer.status_code == 200, answer.text
    check_answer(route, answer.json(), shared)


@pytest.fixture(scope="module")
def shared(server):
    """One session for requests that leave nothing behind."""
    name = f"shared-{uuid.uuid4()}"
    yield name
    for pool in ("python", "node", "shell"):
        server.native("DELETE", f"/pools/{pool}/sessions/{name}")


def check_answer(route: str, answer: dict, session: str):
    """The shape that belongs to the route, not to the version."""
    if route == "executions":
        assert "properties" not in answer
        assert answer["status"] == "Succeeded" and answer["identifier"] == session
        assert answer["executionType"] == "Synchronous" and uuid.UUID(answer["id"])
        result = answer["result"]
        assert (result["stdout"], result["stderr"], result["executionResult"]) == ("out\n", "", 42)
        assert isinstance(result["executionTimeInMilliseconds"], int)
        return
    for place in (answer, answer["properties"]):
        assert (place["status"], place["result"], place["stdout"], place["stderr"]) == ("Success", 42, "out\n", "")
    assert answer["properties"]["executionResult"] == 42
    assert isinstance(answer["properties"]["executionTimeInMilliseconds"], int)


def test_10_3_the_code_alone_is_enough_and_has_two_names(python, shared):
    for body in [{"code": "6 * 7"}, {"pythonCode": "6 * 7"}, {"CODE": "6 * 7"}, {"properties": {"PythonCode": "6 * 7"}}]:
        assert python.call("POST", "code/execute", shared, LEGACY, json=body).json()["properties"]["result"] == 42, body
        assert python.call("POST", "executions", shared, json=body).json()["result"]["executionResult"] == 42, body


def test_10_3_input_types_are_known_in_any_case(python, shared):
    import base64

    code = base64.b64encode("'ä'".encode()).decode()
    for word in ["InlineBase64", "inlinebase64", "INLINEBASE64"]:
        body = {"codeInputType": word, "executionType": "SYNCHRONOUS", "code": code}
        assert python.modern(shared, **body)["result"]["executionResult"] == "ä"
    assert python.modern(shared, codeInputType="inlineText", code="1")["result"]["executionResult"] == 1
    check_error(python.call("POST", "executions", shared, json={"codeInputType": "Inline64", "code": "1"}), 400)
    check_error(python.call("POST", "executions", shared, json={"codeInputType": "InlineBase64", "code": "%"}), 400)
    check_error(python.call("POST", "executions", shared, json={"executionType": "Later", "code": "1"}), 400)


@pytest.mark.parametrize(
    "target",
    [
        "/code/execute?api-version={v}&identifier={i}",
        "/code/execute?identifier={i}&api-version={v}",
        "//code/execute?identifier={i}&api-version={v}",
        "//code///execute//?identifier={i}&api-version={v}",
        "/code/execute/?identifier={i}&api-version={v}",
        "/identifier/{i}/code/execute?api-version={v}",
        "/identifier/{i}/code/execute",
        "/code/execute?identifier={i}",
        "/code/execute?api-version={v}&foo=bar&identifier={i}&",
    ],
)
def test_10_3_parameters_in_any_order_and_slashes_of_any_number(python, shared, target):
    status, text = python.raw("POST", target.format(v=LEGACY, i=shared), b'{"properties":{"code":"6*7"}}')
    assert status == 200, text
    assert json.loads(text)["properties"]["result"] == 42


def test_10_3_the_short_address_of_a_pool_is_as_good(server, shared):
    answer = requests.post(
        f"{server.endpoint}/pools/python/code/execute?identifier={shared}",
        json={"code": "6 * 7"},
        headers={"Authorization": f"Bearer {server.bearer}"},
        timeout=60,
    )
    assert answer.status_code == 200, answer.text
    assert answer.json()["result"] == 42


def test_10_3_the_identifier_of_the_body_counts_when_the_query_has_none(python, session):
    body = {"properties": {"code": "x = 5", "identifier": session}}
    assert python.call("POST", "code/execute", None, LEGACY, json=body).status_code == 200
    assert python.legacy("x", session)["result"] == 5
    # The query's wins over the body's.
    other = python.call("POST", "code/execute", session, LEGACY, json={"code": "x", "identifier": "another-one"})
    assert other.json()["result"] == 5


def test_10_3_raw_and_encoded_identifiers_are_the_same(server, python):
    # Signs that a request's target can hold as they are: no parser of HTTP lets a raw `"`, `<` or `>` pass, `#`, `&` and
    # `%` mean something else, and `+` is a blank.
    plain = "raw_|}{[]:;'?/.,@$^*()-=!~`x"
    name = plain + uuid.uuid4().hex[:6]
    try:
        status, text = python.raw("POST", f"/code/execute?identifier={name}&api-version={LEGACY}", b'{"code":"x=9"}')
        assert status == 200, text
        assert python.legacy("x", name)["result"] == 9
    finally:
        assert python.call("DELETE", "session", name).status_code == 204


# 10.4: uploads


def test_10_4_an_absolute_name_keeps_its_last_part(python, session):
    files = {"file": ("/mnt/data/deep/er/report.csv", b"abc")}
    answer = python.call("POST", "files/upload", session, LEGACY, files=files)
    assert answer.status_code == 200, answer.text
    [record] = answer.json()["value"]
    assert (record["properties"]["filename"], record["properties"]["size"]) == ("report.csv", 3)
    [listed] = python.call("GET", "files", session, LEGACY).json()["value"]
    assert listed["properties"]["filename"] == "report.csv"
    modern = python.upload(session, "a/b.txt", b"abcd").json()
    assert (modern["name"], modern["sizeInBytes"], modern["type"]) == ("b.txt", 4, "file")
    assert modern["contentType"] == "text/plain; charset=utf-8"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{7}Z", modern["lastModifiedAt"])


def multipart(boundary: str, *parts: tuple[str, bytes], field: str = "file") -> bytes:
    out = b""
    for name, data in parts:
        out += f'--{boundary}\r\nContent-Disposition: form-data; name="{field}"; filename="{name}"\r\n'.encode()
        out += b"Content-Type: application/json\r\n\r\n" + data + b"\r\n"
    return out + f"--{boundary}--\r\n".encode()


@pytest.mark.parametrize("kind", ["application/json", "text/plain", "multipart/form-data", None])
def test_10_4_a_multipart_body_is_known_by_itself(python, session, kind):
    body = multipart("3f0c8a55", ("x.bin", b"\r\n--3f0c\r\n\x00"))
    headers = {"Content-Type": kind} if kind else {}
    for route in ("files/upload", "files"):
        answer = python.call("POST", route, session, LEGACY, data=body, headers=headers)
        assert answer.status_code == 200, answer.text
    assert python.call("GET", "files/content/x.bin", session, LEGACY).content == b"\r\n--3f0c\r\n\x00"


def test_10_4_two_parts_are_both_kept(python, session):
    body = multipart("bb", ("one.txt", b"1"), ("two.txt", b"22"))
    headers = {"Content-Type": "multipart/form-data; boundary=bb"}
    answer = python.call("POST", "files/upload", session, LEGACY, data=body, headers=headers)
    names = [record["properties"]["filename"] for record in answer.json()["value"]]
    assert names == ["one.txt", "two.txt"]
    assert python.call("POST", "files", session, data=body, headers=headers).json()["name"] == "one.txt"
    listed = python.call("GET", "files", session).json()["value"]
    assert sorted((file["name"], file["sizeInBytes"]) for file in listed) == [("one.txt", 1), ("two.txt", 2)]


def test_10_4_an_empty_file_is_a_file_and_an_empty_body_is_none(python, session):
    assert python.upload(session, "empty.txt", b"").json()["sizeInBytes"] == 0
    assert python.call("GET", "files/empty.txt/content", session).content == b""
    headers = {"Content-Type": "multipart/form-data; boundary=bb"}
    for body in (b"", b"--bb--\r\n", b"no multipart at all", b"--bb\r\nContent-Disposition: form-data; name=\"file\""):
        check_error(python.call("POST", "files", session, data=body, headers=headers), 400)
    other = multipart("bb", ("x", b"1"), field="document")
    check_error(python.call("POST", "files", session, data=other, headers=headers), 400)


def send_file(python, session, size: int):
    """Uploads `size` bytes that never are in one piece here."""
    boundary = "0123456789abcdef"
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="big.bin"\r\n\r\n'.encode()
    tail = f"\r\n--{boundary}--\r\n".encode()
    block = b"\x00" * (1 << 20)

    class Body:
        def __len__(self):
            return len(head) + size + len(tail)

        def __iter__(self):
            yield head
            for _ in range(size // len(block)):
                yield block
            if size % len(block):
                yield block[: size % len(block)]
            yield tail

    headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    return python.call("POST", "files/upload", session, LEGACY, data=Body(), headers=headers, timeout=100)


def too_large(python, session) -> int:
    """The status of an upload of one byte too many. A server that stops listening half-way has refused it, too."""
    try:
        answer = send_file(python, session, LIMIT + 1)
    except requests.ConnectionError:
        return 413
    check_error(answer, 413)
    return answer.status_code


def test_10_4_128_mb_are_taken_and_one_byte_more_is_not(python, session):
    answer = send_file(python, session, LIMIT)
    assert answer.status_code == 200, answer.text
    assert answer.json()["value"][0]["properties"]["size"] == LIMIT
    assert python.legacy("import os; os.path.getsize('big.bin')", session)["result"] == LIMIT
    assert python.call("DELETE", "files/big.bin", session).status_code == 204
    assert too_large(python, session) == 413
    assert python.call("GET", "files", session).json()["value"] == [], "nothing of it is left"


# 10.5: identifiers


@pytest.mark.parametrize("length, good", [(0, False), (3, False), (4, True), (128, True), (129, False), (5000, False)])
def test_10_5_identifier_lengths(server, python, length, good):
    name = (uuid.uuid4().hex * 200)[:length] if length > 4 else uuid.uuid4().hex[:length]
    answer = python.call("POST", "executions", name, json={"code": "1"})
    if good:
        assert answer.status_code == 200, answer.text
        assert answer.json()["identifier"] == name
        assert python.call("DELETE", "session", name).status_code == 204
    else:
        check_error(answer, 400)


def test_10_5_every_allowed_sign(server, python):
    name = SIGNS + uuid.uuid4().hex
    assert python.call("POST", "executions", name, json={"code": "x = 3"}).json()["identifier"] == name
    assert python.call("GET", "session", name).json()["identifier"] == name
    assert name in [session["identifier"] for session in python.call("GET", "listSessions").json()["sessions"]]
    path = urllib.parse.quote(name, safe="")
    assert server.native("GET", f"/pools/python/sessions/{path}").json()["identifier"] == name
    assert python.call("DELETE", "session", name).status_code == 204


@pytest.mark.parametrize("name", ["has blank", "back\\slash", "umläut", "tab\there", "nul\x00l", "line\nfeed", "    "])
def test_10_5_other_signs_are_refused(python, name):
    check_error(python.call("POST", "executions", name, json={"code": "1"}), 400)


def test_10_5_identifiers_differ_by_case(python, session):
    assert python.legacy("x = 'lower'", session)["status"] == "Success"
    upper = session.upper()
    try:
        assert python.legacy("x", upper)["status"] == "Failure"
    finally:
        python.call("DELETE", "session", upper)


def test_10_5_no_identifier_is_refused(python):
    for route, body in [("executions", {"code": "1"}), ("code/execute", {"properties": {"code": "1"}})]:
        check_error(python.call("POST", route, json=body), 400)
    check_error(python.call("GET", "files"), 400)
    check_error(python.call("GET", "session"), 400)


# 10.6: status words and exit codes


def test_10_6_status_words_per_route(python, session):
    assert python.legacy("1", session)["status"] == "Success"
    assert python.legacy("1 / 0", session)["status"] == "Failure"
    assert python.modern(session, code="1")["status"] == "Succeeded"
    failed = python.modern(session, code="print('before'); 1 / 0")
    assert failed["status"] == "Failed"
    assert failed["result"]["stdout"] == "before\n"
    assert "ZeroDivisionError" in failed["result"]["stderr"] and failed["result"]["executionResult"] == ""
    assert python.legacy("def f(:", session)["status"] == "Failure"
    assert python.legacy("x = 1\nimport sys; sys.exit(3)", session)["status"] == "Failure"
    assert python.legacy("x", session)["result"] == 1, "an exit does not end the interpreter"


@pytest.mark.parametrize("code", [0, 1, 2, 126, 127, 137, 255])
def test_10_6_exit_codes_of_the_shell(shell, shared, code):
    answer = shell.call("POST", "executions", shared, "2025-02-02-preview", json={"shellCommand": f"exit {code}"})
    assert answer.status_code == 200, answer.text
    assert answer.json()["status"] == str(code)
    assert "executionResult" not in answer.json()["result"]


def test_10_6_exit_codes_that_the_system_makes(shell, shared):
    def status(command: str) -> str:
        return shell.modern(shared, shellCommand=command)["status"]

    assert status("no-such-command") == "127"
    assert status("kill -9 $$") == "137"
    assert status("kill -TERM $$") == "143"
    assert status("ls /none 2>/dev/null") == "2"
    assert shell.modern(shared, execCommandAndArgs=["/bin/sh", "-c", "exit 9"])["status"] == "9"


# 10.7: values


VALUES = [
    # code, without the flag, with returnJupyterFormatExecutionResult
    ("42", 42, "42"),
    ("1.5", 1.5, "1.5"),
    ("True", True, "True"),
    ("False", False, "False"),
    ("'abc'", "abc", "'abc'"),
    ("'it\\'s'", "it's", '"it\'s"'),
    ("''", "", "''"),
    ("float('nan')", None, "nan"),
    ("float('inf')", "inf", "inf"),
    ("'nan'", "nan", "'nan'"),
    ("None", "", None),
    ("print('x')", "", ""),
    ("x = 1", "", ""),
    ("", "", ""),
    ("# nothing", "", ""),
    ("7;", "", ""),
    ("[1, 2]", "[1, 2]", "[1, 2]"),
    ("{'a': {'b': [1, None]}}", "{'a': {'b': [1, None]}}", "{'a': {'b': [1, None]}}"),
    ("(1, 'a')", "(1, 'a')", "(1, 'a')"),
    ("10 ** 30", 10**30, str(10**30)),
    ("-2 ** 63", -(2**63), str(-(2**63))),
    ("2 ** 64", 2**64, str(2**64)),
]


@pytest.mark.parametrize("code, plain, jupyter", VALUES)
def test_10_7_values(python, shared, code, plain, jupyter):
    result = python.modern(shared, code=code)["result"]["executionResult"]
    legacy = python.legacy(code, shared)
    assert same(result, plain), result
    assert same(legacy["result"], plain) and same(legacy["executionResult"], plain)
    for flag in ("returnJupyterFormatExecutionResult", "returnJupyterFormat"):
        assert same(python.modern(shared, code=code, **{flag: True})["result"]["executionResult"], jupyter)


def same(found, wanted) -> bool:
    # A number outside of 64 bits cannot be told from a float by every reader: its text, or itself, is right.
    if isinstance(wanted, int) and not isinstance(wanted, bool) and abs(wanted) >= 2**63:
        return str(found) == str(wanted) or (isinstance(found, (int, float)) and math.isclose(found, wanted))
    return type(found) is type(wanted) and found == wanted


def test_10_7_a_bare_number_is_no_number_for_semantic_kernel_net(python, shared):
    agent = {"User-Agent": "Semantic-Kernel/1.60 (Language=dotnet)"}
    for code, wanted in [("42", "42"), ("1.5", "1.5"), ("'a'", "a")]:
        answer = python.call("POST", "executions", shared, json={"code": code}, headers=agent)
        assert answer.json()["result"]["executionResult"] == wanted


def test_10_7_a_figure_is_an_image(python, shared):
    code = "import matplotlib.pyplot as plt\nplt.plot([1, 2])\nplt.show()"
    value = python.modern(shared, code=code)["result"]["executionResult"]
    assert (value["type"], value["format"]) == ("image", "png") and value["base64_data"].startswith("iVBOR")


def test_10_7_a_long_stream_is_cut_with_a_mark_unless_more_is_asked_for(python, shared):
    code = "print('a' * 10_000)"
    cut = python.modern(shared, code=code)["result"]["stdout"]
    assert cut.endswith("...") and 4096 <= len(cut) <= 4099 and set(cut[:-3]) == {"a"}
    whole = python.modern(shared, code=code, outputStreamsMaxLength=20_000)["result"]["stdout"]
    assert whole == "a" * 10_000 + "\n"
    assert python.modern(shared, code="print('abc')", outputStreamsMaxLength=4)["result"]["stdout"] == "abc\n"


def test_10_7_values_of_node(node, shared):
    for code, wanted in [("6 * 7", 42), ("'a' + 'b'", "ab"), ("true", True), ("const x = 3; x", 3), ("undefined", "")]:
        answer = node.modern(shared, code=code)
        assert answer["status"] == "Succeeded" and same(answer["result"]["executionResult"], wanted), (code, answer)
    said = node.modern(shared, code="console.log('out'); console.error('err'); await Promise.resolve(x + 1)")["result"]
    assert (said["stdout"], said["stderr"], said["executionResult"]) == ("out\n", "err\n", 4)
    failed = node.modern(shared, code="null.x")
    assert failed["status"] == "Failed" and "TypeError" in failed["result"]["stderr"]
    assert node.modern(shared, code="const x = 5; x")["result"]["executionResult"] == 5, "a name may be declared again"


# 10.8: what autogen asks first (its own client: test_clients_python.py)


def test_10_8_the_packages_come_as_the_text_of_a_list_one_a_line(python, session):
    code = "\nimport pkg_resources\n[d.project_name for d in pkg_resources.working_set]\n"
    answer = python.legacy(code, session)
    assert answer["status"] == "Success", answer
    text = answer["result"]
    assert isinstance(text, str) and text.startswith("['") and text.endswith("']")
    assert text.count("',\n '") > 20 and "', '" not in text


# 10.9: a pool that is used up


def test_10_9_an_exhausted_pool_says_when_and_recovers(start):
    server = start("--max-sessions", "2", "--ready", "1")
    pool = server.pool("python")
    for name in ("first-one", "second-one"):
        assert pool.legacy("1", name)["result"] == 1
    answer = pool.call("POST", "executions", "third-one", json={"code": "1"})
    body = check_error(answer, 429, "SessionsCountExceedsLimit")
    assert "active 2" in body["message"] and "limit 2" in body["message"]
    assert 1 <= int(answer.headers["retry-after"]) <= 300
    # Other pools, and sessions that are there, go on.
    assert pool.legacy("1", "first-one")["result"] == 1
    assert server.pool("shell").modern("third-one", shellCommand="true")["status"] == "0"
    # So do the files of a session that would have to be made.
    check_error(pool.upload("third-one", "a", b"a"), 429, "SessionsCountExceedsLimit")
    assert pool.call("DELETE", "session", "first-one").status_code == 204

    def try_again():
        return pool.call("POST", "executions", "third-one", json={"code": "6 * 7"}).status_code == 200

    wait_for(try_again, "a session in the place of the one that ended", 20)
    assert {entry["identifier"] for entry in pool.call("GET", "listSessions").json()["sessions"]} == {
        "second-one",
        "third-one",
    }
