"""The pure parts: requests, answers, retries and streams, without a server."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sandpool import (
    Busy,
    Exhausted,
    Finished,
    InvalidRequest,
    NotAllowed,
    NotFound,
    OverQuota,
    QueueFull,
    SandpoolError,
    Secret,
    SessionLost,
    Stdout,
    Unavailable,
    Unreachable,
)
from sandpool._protocol import (
    FORGETFUL,
    RESUMES,
    Answer,
    Follower,
    Message,
    Parser,
    Request,
    Retry,
    SessionFlows,
    address,
    check_input,
    credential,
    opening,
    pages,
    start,
)

MINE = "0b6b2f0e-5a55-4a7e-9b8a-0e4f6f1a2c33"


def answer(status: int = 200, body: Any = None, **headers: str) -> Answer:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(status, named, b"" if body is None else json.dumps(body).encode())


def refused(status: int, code: str, target: str | None = None, **headers: str) -> Answer:
    return answer(status, {"error": {"code": code, "message": "No.", "target": target, "traceId": "00"}}, **headers)


def record(**more: Any) -> dict[str, Any]:
    return {
        "id": MINE,
        "pool": "python",
        "session": "chat-17",
        "state": "ended",
        "outcome": "succeeded",
        "exitCode": None,
        "detail": None,
        "createdAt": "2026-11-24T20:17:29.123456789Z",
        "queuedMilliseconds": 0.412,
        "durationMilliseconds": 11.3,
        "stdout": "hi\n",
        "stderr": "",
        "result": None,
        "displays": [],
        "error": None,
        "stateLost": False,
        "truncated": {"stdout": 0, "stderr": 0},
        **more,
    }


def carried_out(flow: Any, *answers: Answer) -> tuple[Any, list[Request]]:
    """What a flow returns when it is given these answers, and what it asked for."""
    asked, left = [], list(answers)
    try:
        request = next(flow)
        while True:
            asked.append(request)
            request = flow.send(left.pop(0))
    except StopIteration as end:
        assert not left
        return end.value, asked


# Where, and who


def test_the_endpoint_comes_from_the_caller_or_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SANDPOOL_ENDPOINT", raising=False)
    with pytest.raises(ValueError, match="SANDPOOL_ENDPOINT"):
        address(None)
    monkeypatch.setenv("SANDPOOL_ENDPOINT", "http://127.0.0.1:7300/")
    assert address(None) == "http://127.0.0.1:7300"
    assert address("https://example.com/below/") == "https://example.com/below"
    for bad in ("127.0.0.1:7300", "ftp://example.com", "http://", "http://x/?a=b", "http://me:key@example.com"):
        with pytest.raises(ValueError):
            address(bad)


def test_the_token_comes_from_the_caller_or_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SANDPOOL_TOKEN", raising=False)
    with pytest.raises(ValueError, match="SANDPOOL_TOKEN"):
        credential(None)
    monkeypatch.setenv("SANDPOOL_TOKEN", "theirs")
    assert credential(None)() == "theirs"
    assert credential("mine")() == "mine"
    tokens = iter(["one", "two"])
    changing = credential(lambda: next(tokens))
    assert (changing(), changing()) == ("one", "two")


# Bodies


def test_an_execution_always_has_an_id() -> None:
    assert start(code="1")["id"] != start(code="1")["id"]
    assert start(code="1", id=MINE.upper()) == {"id": MINE, "code": "1"}
    with pytest.raises(ValueError):
        start(code="1", id="no uuid")


def test_what_is_run_and_how() -> None:
    everything = start(
        command=("a", "b"), stdin=b"\xff", timeout=1.5, terminal=(24, 80), output_limit=9, fresh=True, id=MINE
    )
    assert everything == {
        "id": MINE,
        "argv": ["a", "b"],
        "stdin": {"base64": "/w=="},
        "timeoutSeconds": 1.5,
        "fresh": True,
        "terminal": {"rows": 24, "columns": 80},
        "outputLimitBytes": 9,
    }
    assert start(command="ls", stdin="", id=MINE) == {"id": MINE, "command": "ls", "stdin": ""}
    assert start(command="cat", stdin=True, id=MINE)["stdin"] is True
    for wrong in ({}, {"code": "1", "command": "ls"}, {"code": "1", "stdin": "x"}, {"code": "1", "terminal": (1, 1)}):
        with pytest.raises(ValueError):
            start(**wrong)
    check_input(True, False, None)
    check_input("x", True, None)
    with pytest.raises(ValueError, match="wait=False"):
        check_input(True, True, None)


def test_what_a_session_is_given() -> None:
    assert opening(None, None, None) is None
    assert opening({}, [], None) is None
    secret = Secret("KEY", "value-of-it", ["api.example.com"])
    assert "value-of-it" not in repr(secret)
    assert opening({"A": "b"}, [secret], {"mode": "none"}) == {
        "env": {"A": "b"},
        "secrets": [{"name": "KEY", "value": "value-of-it", "hosts": ["api.example.com"]}],
        "egress": {"mode": "none"},
    }


# Paths


def test_names_are_one_segment_each() -> None:
    flows = SessionFlows("python", "chat/17 ?#%2F", None)
    assert flows.path == "/pools/python/sessions/chat%2F17%20%3F%23%252F"
    for bad in ("", ".", ".."):
        with pytest.raises(ValueError):
            SessionFlows("python", bad, None)
        with pytest.raises(ValueError):
            SessionFlows(bad, "chat-17", None)
    assert SessionFlows("python", None, None).identifier != SessionFlows("python", None, None).identifier


def test_files_are_below_data_or_absolute() -> None:
    flows = SessionFlows("python", "chat-17", None)
    files = f"{flows.path}/files"
    assert flows.file("in/report.csv") == (f"{files}/in/report.csv", {})
    assert flows.file("./a//b c%/ä") == (f"{files}/a/b%20c%25/%C3%A4", {})
    assert flows.file("/tmp/./log") == (f"{files}/-", {"absolute": "/tmp/log"})
    assert flows.file("-") == (f"{files}/-", {})
    for bad in ("", "/", ".", "../x", "a/../../executions", "/tmp/.."):
        with pytest.raises(ValueError):
            flows.file(bad)


# Answers


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (400, "SessionRequestValidationFailed", InvalidRequest),
        (401, "Unauthorized", NotAllowed),
        (403, "Forbidden", NotAllowed),
        (404, "FileNotFound", NotFound),
        (409, "ExecutionEnded", SandpoolError),
        (410, "SessionLost", SessionLost),
        (429, "SessionsCountExceedsLimit", Exhausted),
        (429, "TenantQuotaExceeded", OverQuota),
        (429, "ExecutionQueueFull", QueueFull),
        (429, "SomethingNew", Busy),
        (503, "SessionPoolBroken", Unavailable),
        (507, "SessionStorageFull", SandpoolError),
    ],
)
def test_refusals_are_exceptions(status: int, code: str, kind: type[SandpoolError]) -> None:
    error = refused(status, code, "field", retry_after="7").error()
    assert type(error) is kind
    assert (error.status, error.code, error.message, error.target, error.retry_after) == (
        status,
        code,
        "No.",
        "field",
        7,
    )
    assert str(error) == f"No. ({code} [field])"


def test_a_refusal_of_somebody_between_us_is_one_too() -> None:
    for content in (b"<html>Bad gateway</html>", b"[]", b"null", b'{"error": "text"}', b"\xff"):
        error = Answer(502, {}, content).error()
        assert (error.status, error.code) == (502, "UnexpectedAnswer") and error.message


def test_a_good_answer_that_makes_no_sense_is_an_error() -> None:
    flows = SessionFlows("python", "chat-17", None)
    bodies: list[Any] = [None, [], {}, {"pool": 1}]
    for body in bodies:
        with pytest.raises(SandpoolError) as caught:
            carried_out(flows.info(), answer(200, body))
        assert caught.value.code == "UnexpectedAnswer"


def test_lists_are_asked_for_page_by_page() -> None:
    first, second = {"value": [1, 2], "next": "b c"}, {"value": [3], "next": None}
    found, asked = carried_out(pages("/x", {"path": "d"}, lambda raw: raw), answer(body=first), answer(body=second))
    assert found == [1, 2, 3]
    assert [request.query for request in asked] == [{"path": "d"}, {"path": "d", "after": "b c"}]


# Retries


def test_only_a_refusal_that_says_when_is_tried_again() -> None:
    retry, get = Retry(3, 30), Request("GET", "/")
    assert retry.pause(get, answer(429, retry_after="2"), 0, 0) == 2
    assert retry.pause(get, answer(503, retry_after="2"), 2, 28) == 2
    assert retry.pause(get, answer(503, retry_after="2"), 3, 6) is None, "often enough"
    assert retry.pause(get, answer(503, retry_after="3"), 2, 28) is None, "long enough"
    assert retry.pause(get, answer(429, retry_after="300"), 0, 0) is None
    for stays in (answer(429), answer(500, retry_after="1"), answer(200, retry_after="1")):
        assert retry.pause(get, stays, 0, 0) is None
    for strange in ("Wed, 21 Oct 2026 07:28:00 GMT", "-1", "1.5", "", "²"):
        assert retry.pause(get, answer(429, retry_after=strange), 0, 0) is None
    assert Retry(0, 30).pause(get, answer(429, retry_after="1"), 0, 0) is None
    assert retry.pause(Request("POST", "/", is_repeatable=False), answer(503, retry_after="1"), 0, 0) is None


# Sessions


def test_an_execution_is_waited_for_until_it_ends() -> None:
    flows = SessionFlows("python", "chat-17", None)
    running = answer(202, record(state="running", outcome=None))
    found, asked = carried_out(flows.execute(start(code="1", id=MINE), True), running, running, answer(body=record()))
    assert found["state"] == "ended"
    assert [(request.method, request.path) for request in asked] == [
        ("POST", flows.executions_path),
        ("GET", f"{flows.executions_path}/{MINE}"),
        ("GET", f"{flows.executions_path}/{MINE}"),
    ]
    assert asked[0].body == {"id": MINE, "code": "1", "waitSeconds": 60} and asked[1].query == {"wait": "60.000"}
    assert all(request.read_timeout(30) > 60 for request in asked), "the client is the more patient one"
    found, asked = carried_out(flows.execute(start(code="1"), False), running)
    assert found["state"] == "running" and asked[0].body and asked[0].body["waitSeconds"] == 0


def test_waiting_ends_in_time() -> None:
    flows = SessionFlows("python", "chat-17", None)
    running = answer(body=record(state="running", outcome=None))
    found, asked = carried_out(flows.wait(MINE, 70), running, running)
    assert found["state"] == "running" and [request.query["wait"] for request in asked] == ["60.000", "10.000"]
    _, asked = carried_out(flows.wait(MINE, 0), running)
    assert [request.query["wait"] for request in asked] == ["0.000"]


def test_input_goes_in_pieces_and_never_twice() -> None:
    flows = SessionFlows("shell", "chat-17", None)
    large = b"x" * ((8 << 20) + 1)
    _, asked = carried_out(flows.input(MINE, large, True), *[answer(204)] * 3)
    assert [len(request.content or b"") for request in asked] == [8 << 20, 1, 0]
    assert not any(request.is_repeatable for request in asked)
    _, asked = carried_out(flows.input(MINE, "", False))
    assert asked == [], "nothing is not the end of input"


def test_a_session_is_not_made_behind_its_owners_back() -> None:
    flows = SessionFlows("python", "chat-17", opening({"A": "b"}, None, None))
    with pytest.raises(RuntimeError, match="env"):
        next(flows.execute(start(code="1"), True))
    opened = {
        "pool": "python",
        "identifier": "chat-17",
        "sandbox": "s",
        "level": "process",
        "owner": "me",
        "tenant": "default",
        "busy": 0,
        "createdAt": "2026-11-24T20:17:29Z",
        "lastUsedAt": "2026-11-24T20:17:29Z",
        "expiresAt": "2026-11-24T20:17:29Z",
        "isNew": True,
    }
    info, asked = carried_out(flows.open(), answer(201, opened))
    assert info.is_new and asked[0].body == {"env": {"A": "b"}}
    with pytest.raises(SessionLost):
        carried_out(flows.execute(start(code="1"), True), refused(410, "SessionLost"))
    for again in (flows.execute(start(code="1"), True), flows.write("x", b"")):
        with pytest.raises(RuntimeError, match="open"):
            next(again)
    carried_out(flows.open(), answer(200, opened))
    carried_out(flows.execute(start(code="1"), True), answer(body=record()))
    carried_out(flows.end(), refused(404, "NoSessionFoundError"))
    with pytest.raises(RuntimeError, match="has ended"):
        next(flows.execute(start(code="1"), True))
    with pytest.raises(RuntimeError, match="has ended"):
        flows.follow(start(code="1"))


# Streams


def test_events_are_read_from_pieces_of_any_size() -> None:
    text = ': hello\n\nevent: stdout\ndata: {"text":"ä"}\nid: 2\n\nid: x\ndata:a\r\ndata: b\r\n\r\n\nid: 4\n\n'
    whole = [Message("stdout", '{"text":"ä"}', 2), Message("message", "a\nb", None)]
    for size in (1, 2, 3, 7, 1000):
        parser, data = Parser(), text.encode()
        found = [message for at in range(0, len(data), size) for message in parser.feed(data[at : at + size])]
        assert found == whole, size


def event(name: str, data: Any, number: int | None = None) -> bytes:
    last = "" if number is None else f"id: {number}\n"
    return f"event: {name}\ndata: {json.dumps(data)}\n{last}\n".encode()


FINISHED = {
    "outcome": "succeeded",
    "exitCode": None,
    "detail": None,
    "durationMilliseconds": 1.9,
    "stateLost": False,
    "truncated": {"stdout": 0, "stderr": 0},
}
BROKEN = Unreachable(0, "ReadError", "It broke.")


def followed() -> Follower:
    return SessionFlows("python", "chat-17", None).follow(start(code="1", id=MINE))


def test_each_event_is_told_once() -> None:
    follower = followed()
    first = follower.request()
    assert first.method == "POST" and first.headers()["Accept"] == "text/event-stream"
    follower.opened()
    told = follower.feed(event("started", {}, 1) + event("stdout", {"text": "a"}, 2) + b"event: stdout\ndata: {")
    assert told[1:] == [Stdout("a")]
    # The tail has no number of its own: it comes with the event after it, and only then.
    assert follower.feed(b'"text": "b"}\nid: 3\n\n' + event("stdout", {"text": "tail"})) == [Stdout("b")]
    assert follower.broke(BROKEN) > 0
    again = follower.request()
    assert (again.method, again.query) == ("GET", {"after": "3"}) and again.path.endswith(f"/{MINE}/events")
    follower.opened()
    rest = follower.feed(
        event("stdout", {"text": "b"}, 3)
        + event("new kind", {"x": 1}, 4)
        + event("stdout", {"text": "tail"})
        + event("finished", FINISHED, 5)
        + event("stdout", {"text": "nothing follows"}, 6)
    )
    assert rest[0] == Stdout("tail") and isinstance(rest[1], Finished) and len(rest) == 2
    assert follower.is_finished


def test_a_stream_is_taken_up_again_within_bounds() -> None:
    follower = followed()
    with pytest.raises(Unreachable):
        follower.broke(BROKEN)
    follower = followed()
    follower.opened()
    pauses = [follower.broke(BROKEN) for _ in range(RESUMES)]
    assert pauses == sorted(pauses) and sum(pauses) < 10
    with pytest.raises(Unreachable):
        follower.broke(BROKEN)
    follower = followed()
    follower.opened()
    for number in range(1, 3 * RESUMES):
        follower.feed(event("stdout", {"text": "x"}, number))
        assert follower.broke(Unavailable(503, "ServiceUnavailable", "It stops.")) == pauses[0]
        follower.opened()
    with pytest.raises(NotAllowed):
        follower.broke(NotAllowed(401, "Unauthorized", "It has expired."))


def test_a_session_that_is_not_there_yet_is_asked_for_again_for_a_moment() -> None:
    follower, absent = followed(), NotFound(404, "NoSessionFoundError", "There is no session.")
    with pytest.raises(NotFound):
        follower.broke(absent)
    follower = followed()
    follower.opened()
    assert sum(follower.broke(absent) for _ in range(FORGETFUL)) < 1
    with pytest.raises(NotFound):
        follower.broke(absent)
    follower = followed()
    follower.opened()
    with pytest.raises(NotFound):
        follower.broke(NotFound(404, "ExecutionNotFound", "There is no such execution."))


def test_a_lost_session_is_remembered_by_its_streams() -> None:
    flows = SessionFlows("python", "chat-17", {"env": {}})
    carried = flows.open()
    next(carried)
    flows.stage = flows.stage.OPEN
    follower = flows.follow(start(code="1"))
    with pytest.raises(SessionLost):
        follower.broke(SessionLost(410, "SessionLost", "It is lost."))
    with pytest.raises(RuntimeError):
        flows.follow(start(code="1"))


def test_an_event_that_makes_no_sense_is_an_error() -> None:
    for name, data in (("stdout", {}), ("finished", []), ("result", {"text": "x"})):
        follower = followed()
        follower.opened()
        with pytest.raises(SandpoolError, match="event"):
            follower.feed(event(name, data, 1))
