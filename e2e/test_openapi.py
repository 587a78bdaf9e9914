"""The OpenAPI document, and answers held against it."""

from __future__ import annotations

import re

import pytest
import requests

import sandpool


@pytest.fixture(scope="module")
def document(server):
    answer = requests.get(server.endpoint + "/openapi.json", timeout=10)
    assert answer.status_code == 200, answer.text
    return answer.json()


def resolve(document, schema):
    while isinstance(schema, dict) and "$ref" in schema:
        target = document
        assert schema["$ref"].startswith("#/"), schema["$ref"]
        for step in schema["$ref"][2:].split("/"):
            target = target[step.replace("~1", "/").replace("~0", "~")]
        schema = target
    return schema


def mismatch(document, schema, value, where="answer") -> str | None:
    """Why `value` is not what `schema` says: the parts of JSON Schema that the document uses."""
    schema = resolve(document, schema)
    if schema in (True, {}) or not isinstance(schema, dict):
        return None
    for key in ("oneOf", "anyOf"):
        if key in schema and all(mismatch(document, option, value, where) for option in schema[key]):
            return f"{where}: none of {key}"
    for part in schema.get("allOf", []):
        if why := mismatch(document, part, value, where):
            return why
    if "enum" in schema and value not in schema["enum"]:
        return f"{where}: {value!r} is none of {schema['enum']}"
    if "const" in schema and value != schema["const"]:
        return f"{where}: {value!r} is not {schema['const']!r}"
    kinds = {
        "object": dict,
        "array": list,
        "string": str,
        "integer": int,
        "number": (int, float),
        "boolean": bool,
        "null": type(None),
    }
    wanted = schema.get("type", [])
    wanted = [wanted] if isinstance(wanted, str) else wanted
    if schema.get("nullable"):
        wanted = [*wanted, "null"]
    if wanted and not any(
        isinstance(value, kinds[kind]) and not (isinstance(value, bool) and kind in ("integer", "number")) for kind in wanted
    ):
        return f"{where}: {value!r} is no {wanted}"
    if isinstance(value, dict):
        for name in schema.get("required", []):
            if name not in value:
                return f"{where}: no {name}"
        for name, inner in value.items():
            if name in schema.get("properties", {}):
                if why := mismatch(document, schema["properties"][name], inner, f"{where}.{name}"):
                    return why
            elif schema.get("additionalProperties") is False:
                return f"{where}: {name} is not documented"
    if isinstance(value, list):
        for at, inner in enumerate(value):
            if why := mismatch(document, schema.get("items", {}), inner, f"{where}[{at}]"):
                return why
    return None


def test_the_document_is_sound(document):
    assert re.match(r"3\.[01]\.", document["openapi"]) and document["info"]["version"]
    assert document["paths"]
    names = []

    def walk(value):
        if isinstance(value, dict):
            if isinstance(value.get("$ref"), str):
                resolve(document, value)
            for inner in value.values():
                walk(inner)
        elif isinstance(value, list):
            for inner in value:
                walk(inner)

    walk(document)
    for path, item in document["paths"].items():
        assert path.startswith("/")
        for method, operation in item.items():
            if method not in ("get", "put", "post", "delete", "patch"):
                continue
            assert operation["responses"], f"{method} {path}"
            names.append(operation.get("operationId"))
            declared = {
                parameter["name"]
                for parameter in map(lambda p: resolve(document, p), [*item.get("parameters", []), *operation.get("parameters", [])])
                if parameter["in"] == "path"
            }
            assert declared == set(re.findall(r"{\*?(\w+)}", path)), f"{method} {path}"
    names = [name for name in names if name]
    assert len(names) == len(set(names)), "an operation's name is its own"


def find(document, path: str) -> tuple[str, dict]:
    """The documented path that a request's path is an instance of; literal ones first."""
    fitting = []
    for template, item in document["paths"].items():
        pattern = re.sub(r"{\*?\w+}", "\0", template)
        pattern = re.escape(pattern).replace("\0", "[^/]+").replace(re.escape("\0"), "[^/]+")
        if re.fullmatch(pattern, path):
            fitting.append((template.count("{"), template, item))
    assert fitting, f"{path} is not documented"
    return min(fitting, key=lambda found: found[:2])[1:]


def check(document, method: str, path: str, answer: requests.Response):
    template, item = find(document, path)
    operation = item[method.lower()]
    responses = operation["responses"]
    status = str(answer.status_code)
    response = responses.get(status) or responses.get(status[0] + "XX") or responses.get("default")
    assert response, f"{method} {template}: {status} is not documented"
    content = resolve(document, response).get("content", {})
    kind = answer.headers.get("content-type", "").split(";")[0]
    if not content:
        return
    assert kind in content, f"{method} {template}: {status} has {kind}, documented are {list(content)}"
    if kind == "application/json":
        why = mismatch(document, content[kind].get("schema", {}), answer.json())
        assert why is None, f"{method} {template} {status}: {why}"


def test_answers_are_as_documented(document, server, session):
    base = f"/pools/python/sessions/{session}"
    requests_made = [
        ("GET", "/healthz", {}),
        ("GET", "/readyz", {}),
        ("GET", "/pools", {}),
        ("GET", "/pools/python", {}),
        ("GET", "/pools/none", {}),
        ("GET", base, {}),
        ("POST", f"{base}/executions", {"json": {"code": "print('x'); 6 * 7"}}),
        ("POST", f"{base}/executions", {"json": {"code": "1 / 0"}}),
        ("POST", f"{base}/executions", {"json": {"code": 5}}),
        ("POST", f"{base}/executions", {"json": {}}),
        ("GET", base, {}),
        ("GET", "/pools/python/sessions", {}),
        ("GET", f"{base}/executions/00000000-0000-4000-8000-000000000000", {}),
        ("PUT", f"{base}/files/a.txt", {"data": b"abc"}),
        ("GET", f"{base}/files", {}),
        ("GET", f"{base}/files/a.txt", {}),
        ("GET", f"{base}/files/none", {}),
        ("DELETE", f"{base}/files/a.txt", {}),
        ("DELETE", base, {}),
        ("DELETE", base, {}),
    ]
    for method, path, more in requests_made:
        check(document, method, path, server.native(method, path, **more))
    for path in ("/pools", base):
        check(document, "GET", path, requests.get(server.endpoint + path, timeout=10))


def test_no_documented_operation_fails_on_nonsense(document, server):
    """Every operation, with nonsense in its parameters and body: refused as documented, never a failure of the server."""
    tried = 0
    for template, item in document["paths"].items():
        for method in ("get", "put", "post", "delete"):
            if method not in item or "token" in template or "stop" in template:
                continue
            for nonsense in ("%00", "a b", "..%2f..", "x" * 300):
                path = re.sub(r"{\*?\w+}", nonsense, template)
                for body in (None, b"{]", b'{"a": [1]}'):
                    headers = {"Content-Type": "application/json"}
                    answer = server.native(method.upper(), path, data=body, headers=headers, timeout=20)
                    assert answer.status_code < 500, f"{method} {path}: {answer.status_code} {answer.text[:200]}"
                    tried += 1
    assert tried > 20
    assert sandpool.wait_for(server.is_ready, "the server")
