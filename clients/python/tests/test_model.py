"""What the server tells, as values."""

from __future__ import annotations

import base64
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from test_protocol import record

from sandpool import ExecutionFailed, ExecutionRecord, Form, Rich
from sandpool._model import FileEntry, Pool, SessionInfo, instant, read_event

PNG = b"\x89PNG\r\n\x1a\n"


def execution(**more: Any) -> ExecutionRecord:
    return ExecutionRecord(**ExecutionRecord.fields(record(**more)))


def shown(text: str = "t", **more: Any) -> dict[str, Any]:
    return {"text": text, "forms": [], "dropped": [], **more}


def test_times_have_any_number_of_digits() -> None:
    whole = datetime(2026, 11, 24, 20, 17, 29, tzinfo=timezone.utc)
    assert instant("2026-11-24T20:17:29Z") == whole
    assert instant("2026-11-24T20:17:29.5Z") == whole + timedelta(milliseconds=500)
    assert instant("2026-11-24T20:17:29.123456789Z") == whole + timedelta(microseconds=123456)
    assert instant("2026-11-24T21:17:29+01:00") == whole
    for bad in ("", "2026-11-24", "2026-11-24T20:17:29"):
        with pytest.raises(ValueError):
            instant(bad)


def test_an_execution_is_read() -> None:
    ran = execution(result=shown("42", json=42), displays=[shown()], newKey="skipped")
    assert (ran.id, ran.stdout, ran.duration) == (record()["id"], "hi\n", timedelta(milliseconds=11.3))
    assert ran.result == Rich("42", 42, True) and ran.displays == (Rich("t"),)
    assert ran.has_output and ran.is_ended and ran.succeeded and ran.raise_for_error() is ran
    outline = {key: value for key, value in record().items() if key not in ("stdout", "stderr", "result", "displays")}
    listed = ExecutionRecord(**ExecutionRecord.fields(outline))
    assert not listed.has_output and listed.stdout == "" and listed.result is None


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"outcome": "raised", "error": {"name": "E", "message": "m", "traceback": "t"}}, "E: m"),
        ({"outcome": "raised"}, "the code raised an exception"),
        ({"outcome": "exited", "exitCode": 3, "stderr": "a\nlast\n"}, "the command exited with 3: last"),
        ({"outcome": "exited", "exitCode": 1}, "the command exited with 1"),
        ({"outcome": "timedOut"}, "the time-out passed"),
        ({"outcome": "died", "detail": "of memory"}, "it died: of memory"),
        ({"outcome": "something new"}, "it ended as something new"),
    ],
)
def test_what_did_not_succeed_says_why(more: dict[str, Any], why: str) -> None:
    ran = execution(**more)
    assert not ran.succeeded
    with pytest.raises(ExecutionFailed) as caught:
        ran.raise_for_error()
    assert str(caught.value) == why and caught.value.execution is ran


def test_success_of_commands_and_of_what_goes_on() -> None:
    assert execution(outcome="exited", exitCode=0).raise_for_error().exit_code == 0
    with pytest.raises(RuntimeError, match="has not ended"):
        execution(state="running", outcome=None).raise_for_error()


def test_null_is_told_from_nothing() -> None:
    assert Rich.read(shown("None", json=None)).has_json
    assert not Rich.read(shown("[1]")).has_json


def test_forms_are_what_jupyter_wants() -> None:
    encoded = base64.b64encode(PNG).decode()
    value = Rich.read(
        shown(
            forms=[
                {"type": "image/png", "base64": encoded},
                {"type": "application/json", "text": '{"a": [1]}'},
                {"type": "text/html", "text": "<b>x</b>"},
                {"type": "image/svg+xml", "base64": base64.b64encode(b"<svg/>").decode()},
                {"type": "application/javascript", "base64": base64.b64encode(b"alert(1)").decode()},
                {"type": "application/vnd.plot+json", "text": "{}"},
            ],
            dropped=[{"type": "image/jpeg", "bytes": 9}],
        )
    )
    passive = {"text/plain": "t", "image/png": encoded, "application/json": {"a": [1]}}
    assert value._repr_mimebundle_() == passive
    everything = value.trusted()._repr_mimebundle_()
    assert everything == {
        **passive,
        "text/html": "<b>x</b>",
        "image/svg+xml": "<svg/>",
        "application/javascript": base64.b64encode(b"alert(1)").decode(),
        "application/vnd.plot+json": {},
    }
    assert value._repr_mimebundle_(include=["image/png"]) == {"image/png": encoded}
    assert set(value._repr_mimebundle_(exclude=["image/png"])) == {"text/plain", "application/json"}
    assert value.dropped == (("image/jpeg", 9),)
    form = value.form("image/png")
    assert form is not None and form.as_bytes() == PNG and value.form("image/jpeg") is None
    assert Form("text/html", "ä").as_bytes() == "ä".encode()
    assert Form("application/json", "no json").as_jupyter() == "no json"


def test_an_execution_shows_its_result_or_what_was_displayed_or_its_output() -> None:
    figure = shown("Figure", forms=[{"type": "image/png", "base64": base64.b64encode(PNG).decode()}])
    assert execution(result=shown("42", json=42), displays=[figure])._repr_mimebundle_() == {"text/plain": "42"}
    assert "image/png" in execution(displays=[shown(), figure])._repr_mimebundle_()
    assert "image/png" in execution(displays=[figure], result=shown("None", json=None))._repr_mimebundle_()
    assert execution(stderr="oh\n")._repr_mimebundle_() == {"text/plain": "hi\noh\n"}
    assert "Execution" in execution(stdout="")._repr_mimebundle_()["text/plain"]


def test_files_and_events_that_are_not_known() -> None:
    entry = {"name": "a", "path": "d/a", "type": "other", "size": 1, "modifiedAt": None, "new": 1}
    assert FileEntry.read(entry).modified_at is None
    assert read_event("something new", {}) is None


def test_the_examples_of_the_description_are_read() -> None:
    """The API's description is beside this package in the repository; its required keys are all that is read."""
    import json
    from pathlib import Path

    description = Path(__file__).parents[3] / "docs/openapi.json"
    if not description.exists():
        pytest.skip("not in the repository")
    schemas = json.loads(description.read_text())["components"]["schemas"]

    def least(schema: dict[str, Any]) -> Any:
        """A value with the required keys alone."""
        if "$ref" in schema:
            return least(schemas[schema["$ref"].rpartition("/")[2]])
        if "oneOf" in schema:
            return least(schema["oneOf"][0])
        if "enum" in schema:
            return schema["enum"][0]
        kind = schema.get("type")
        kind = kind[0] if isinstance(kind, list) else kind
        if kind == "object":
            return {name: least(schema["properties"][name]) for name in schema.get("required", [])}
        values: dict[Any, Any] = {"array": [], "integer": 0, "number": 0.0, "boolean": False}
        return "2026-11-24T20:17:29Z" if schema.get("format") == "date-time" else values.get(kind, "x")

    assert Pool.read(least({"$ref": "#/components/schemas/Pool"})).name == "x"
    for name in ("Session", "SessionDetail", "OpenedSession"):
        assert SessionInfo.read(least({"$ref": f"#/components/schemas/{name}"})).tenant == "x"
    for name in ("Execution", "ExecutionOutline"):
        assert ExecutionRecord.fields(least({"$ref": f"#/components/schemas/{name}"}))["pool"] == "x"
    assert FileEntry.read(least({"$ref": "#/components/schemas/File"})).size == 0
    example = schemas["Execution"]["examples"][0]
    assert ExecutionRecord(**ExecutionRecord.fields(example)).raise_for_error().stdout == "hi\n"
