"""Section 10.11 of the wire reference: azure-identity, unmodified; and trusted issuers, API keys, expired tokens."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import jwt
import pytest
import requests
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from sandpool import check_error

SCOPES = ["https://dynamicsessions.io/.default", "https://acasessions.io/.default"]
KEY = "an-api-key-of-this-test"
READER = "a-key-that-only-reads"


@pytest.mark.parametrize("scope", SCOPES)
def test_10_11_app_service_form(as_client, python, session, scope):
    from azure.identity import DefaultAzureCredential

    got = DefaultAzureCredential().get_token(scope)
    assert got.expires_on > time.time() + 60
    assert python.call("POST", "executions", session, json={"code": "1"}, token=got.token).status_code == 200


def test_10_11_a_wrong_secret_gets_no_token(server):
    variables = server.env()
    for header in ({}, {"X-IDENTITY-HEADER": "wrong"}, {"X-IDENTITY-HEADER": ""}):
        answer = requests.get(
            variables["IDENTITY_ENDPOINT"],
            params={"resource": "https://dynamicsessions.io", "api-version": "2019-08-01"},
            headers=header,
            timeout=10,
        )
        assert answer.status_code in (401, 403)
        assert answer.json()["message"] and "access_token" not in answer.text
    header = {"X-IDENTITY-HEADER": variables["IDENTITY_HEADER"]}
    for resource in ("https://management.azure.com", "https://dynamicsessions.io.evil.example", ""):
        answer = requests.get(variables["IDENTITY_ENDPOINT"], params={"resource": resource}, headers=header, timeout=10)
        assert answer.status_code == 400


def test_10_11_the_virtual_machine_form_is_off_unless_it_is_asked_for(server):
    answer = requests.get(
        server.endpoint + "/metadata/identity/oauth2/token",
        params={"resource": "https://dynamicsessions.io", "api-version": "2018-02-01"},
        headers={"Metadata": "true"},
        timeout=10,
    )
    assert answer.status_code == 403 and "access_token" not in answer.text


class Issuer:
    """An OIDC issuer on this machine: a discovery document, one key, tokens."""

    def __init__(self):
        self.key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        jwk = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(self.key.public_key()))
        keys = {"keys": [{**jwk, "kid": "one", "alg": "RS256", "use": "sig"}]}
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                documents = {
                    "/.well-known/openid-configuration": {"issuer": issuer.name, "jwks_uri": issuer.name + "keys"},
                    "/keys": keys,
                }
                body = json.dumps(documents.get(self.path, {})).encode()
                self.send_response(200 if self.path in documents else 404)
                self.send_header("Content-Length", str(len(body)))
                self.send_header("Content-Type", "application/json")
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.name = f"http://127.0.0.1:{self.http.server_port}/"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def token(self, kid: str = "one", key=None, algorithm: str = "RS256", **claims) -> str:
        now = int(time.time())
        claims = {
            "iss": self.name,
            "aud": "https://dynamicsessions.io",
            "sub": "somebody",
            "iat": now,
            "nbf": now,
            "exp": now + 600,
            "roles": ["Azure ContainerApps Session Executor"],
            **claims,
        }
        claims = {name: value for name, value in claims.items() if value is not None}
        return jwt.encode(claims, key or self.key, algorithm=algorithm, headers={"kid": kid})


@pytest.fixture(scope="module")
def issuer():
    issuer = Issuer()
    yield issuer
    issuer.http.shutdown()


@pytest.fixture(scope="module")
def guarded(issuer):
    """A server that trusts an issuer and knows two keys."""
    from sandpool import Server

    def sha(key):
        return hashlib.sha256(key.encode()).hexdigest()

    server = Server(
        config=json.dumps(
            {
                "listen": "127.0.0.1:0",
                "https": {"listen": "127.0.0.1:0"},
                "auth": {
                    "openMetadata": True,
                    "issuers": [{"issuer": issuer.name, "roles": {"code-runners": "executor", "lookers": "reader"}}],
                    "apiKeys": [
                        {"name": "ci", "sha256": sha(KEY), "role": "executor", "pools": ["python"]},
                        {"name": "eye", "sha256": sha(READER), "role": "reader"},
                    ],
                },
                "pools": [
                    {
                        "apiVersion": "sandpool.dev/v1alpha1",
                        "kind": "SessionPool",
                        "metadata": {"name": name},
                        "spec": {
                            "containerType": kind,
                            "scaleConfiguration": {"maxConcurrentSessions": 4, "readySessionInstances": 1},
                        },
                    }
                    for name, kind in (("python", "PythonLTS"), ("shell", "Shell"))
                ],
            }
        )
    )
    yield server
    server.remove()


def test_a_trusted_issuers_tokens_are_good(guarded, issuer):
    pool = guarded.pool("shell")

    def status(token: str) -> int:
        return pool.call("POST", "executions", "trusted", json={"shellCommand": "true"}, token=token).status_code

    assert status(issuer.token()) == 200
    assert status(issuer.token(aud="https://acasessions.io/")) == 200
    assert status(issuer.token(roles=["0fb8eba5-a2bb-4abe-b1c1-49dfad359bb0"])) == 200
    assert status(issuer.token(roles="code-runners")) == 200


def test_10_2_what_is_wrong_with_a_token_is_said(guarded, issuer):
    pool = guarded.pool("shell")
    now = int(time.time())
    other = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    curve = ec.generate_private_key(ec.SECP256R1())
    cases = [
        ("expired", issuer.token(iat=now - 900, nbf=now - 900, exp=now - 300), 401, "expired"),
        ("not yet", issuer.token(nbf=now + 900), 401, "not valid yet"),
        ("audience", issuer.token(aud="https://management.azure.com"), 401, "management.azure.com"),
        ("no audience", issuer.token(aud=None), 401, ""),
        ("no end", issuer.token(exp=None), 401, ""),
        ("signed by another", issuer.token(key=other), 401, "signature"),
        ("signed with another kind of key", issuer.token(key=curve, algorithm="ES256"), 401, ""),
        ("signed with the public key as a secret", issuer.token(key="x" * 32, algorithm="HS256"), 401, ""),
        ("unknown key", issuer.token(kid="two"), 401, "key"),
        ("unknown issuer", issuer.token(iss="https://login.example/"), 401, "login.example"),
        ("no role", issuer.token(roles=None), 403, "executor"),
        ("another role", issuer.token(roles=["Storage Blob Data Reader"]), 403, "executor"),
        ("only looks", issuer.token(roles=["lookers"]), 403, "executor"),
    ]
    for why, token, status, text in cases:
        answer = pool.call("POST", "executions", "trusted", json={"shellCommand": "true"}, token=token)
        assert text in check_error(answer, status)["message"], why


def test_api_keys(guarded):
    python, shell = guarded.pool("python"), guarded.pool("shell")
    assert python.call("POST", "executions", "by-key", json={"code": "6 * 7"}, token=KEY).status_code == 200
    check_error(shell.call("POST", "executions", "by-key", json={"shellCommand": "true"}, token=KEY), 403)
    check_error(python.call("POST", "executions", "by-key", json={"code": "1"}, token=READER), 403)
    check_error(python.call("POST", "executions", "by-key", json={"code": "1"}, token=KEY + "x"), 401)
    assert guarded.native("GET", "/pools", token=READER).status_code == 200
    shown = guarded.run("config", "show").stdout
    assert KEY not in shown and hashlib.sha256(KEY.encode()).hexdigest() not in shown


def test_10_11_virtual_machine_form(guarded, monkeypatch):
    from azure.identity import DefaultAzureCredential

    for name in ("IDENTITY_ENDPOINT", "IDENTITY_HEADER"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", guarded.endpoint)
    token = DefaultAzureCredential().get_token(SCOPES[0]).token
    assert guarded.pool().call("POST", "executions", "by-imds", json={"code": "1"}, token=token).status_code == 200
    for headers in ({}, {"Metadata": "true", "X-Forwarded-For": "10.0.0.1"}):
        answer = requests.get(
            guarded.endpoint + "/metadata/identity/oauth2/token",
            params={"resource": "https://dynamicsessions.io"},
            headers=headers,
            timeout=10,
        )
        assert answer.status_code == 400


def test_10_11_service_principal_through_adfs(guarded, monkeypatch):
    from azure.core.exceptions import ClientAuthenticationError
    from azure.identity import DefaultAzureCredential

    for name in ("IDENTITY_ENDPOINT", "IDENTITY_HEADER"):
        monkeypatch.delenv(name, raising=False)
    authority = guarded.env("--https")["REQUESTS_CA_BUNDLE"]
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", authority)
    monkeypatch.setenv("AZURE_AUTHORITY_HOST", guarded.https_endpoint)
    monkeypatch.setenv("AZURE_TENANT_ID", "adfs")
    monkeypatch.setenv("AZURE_CLIENT_ID", "ci")
    monkeypatch.setenv("AZURE_CLIENT_SECRET", KEY)
    monkeypatch.setenv("AZURE_TOKEN_CREDENTIALS", "EnvironmentCredential")
    token = DefaultAzureCredential().get_token(SCOPES[0]).token
    assert guarded.pool().call("POST", "executions", "by-adfs", json={"code": "1"}, token=token).status_code == 200
    shell = guarded.pool("shell").call("POST", "executions", "by-adfs", json={"shellCommand": "true"}, token=token)
    check_error(shell, 403)
    monkeypatch.setenv("AZURE_CLIENT_SECRET", "wrong")
    with pytest.raises(ClientAuthenticationError):
        DefaultAzureCredential().get_token(SCOPES[0])


def test_tokens_outlive_a_rotation_of_the_key(guarded):
    pool = guarded.pool("shell")

    def status(token: str) -> int:
        return pool.call("POST", "executions", "rotated", json={"shellCommand": "true"}, token=token).status_code

    before = guarded.token()
    guarded.run("token", "rotate")
    after = guarded.token()
    kid = lambda token: jwt.get_unverified_header(token)["kid"]  # noqa: E731
    assert kid(before) != kid(after)
    assert (status(before), status(after)) == (200, 200)
