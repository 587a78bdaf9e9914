"""Azure's management client for session pools, as its users write it: `python drive.py ADDRESS STORY [ARGUMENT...]`.

Prints what it saw as JSON. It runs where one version of azure-mgmt-appcontainers is installed, and nothing else.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import requests
from azure.core.credentials import AccessToken
from azure.core.exceptions import HttpResponseError
from azure.mgmt.appcontainers import ContainerAppsAPIClient
from azure.mgmt.appcontainers.models import (
    CustomContainerTemplate,
    DynamicPoolConfiguration,
    EnvironmentVar,
    LifecycleConfiguration,
    ManagedIdentitySetting,
    ScaleConfiguration,
    SessionContainer,
    SessionContainerResources,
    SessionIngress,
    SessionNetworkConfiguration,
    SessionPool,
    SessionPoolSecret,
    SessionPoolUpdatableProperties,
    SessionRegistryCredentials,
)

SUBSCRIPTION, GROUP = "11111111-2222-3333-4444-555555555555", "lab"
CODE = {"PythonLTS": {"code": "6 * 7"}, "Shell": {"shellCommand": "echo $((6 * 7))"}}


class Token:
    """A credential that is a token of the server's own."""

    def __init__(self, role: str = "admin"):
        self.role = role

    def get_token(self, *scopes: str, **_) -> AccessToken:
        words = [os.environ["SANDPOOL_BIN"], "token", "--role", self.role]
        done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60)
        return AccessToken(done.stdout.strip(), int(time.time()) + 3000)


def pools(address: str, role: str = "admin", subscription: str = SUBSCRIPTION):
    scopes = ["https://management.azure.com/.default"]
    client = ContainerAppsAPIClient(Token(role), subscription, base_url=address, credential_scopes=scopes)
    return client.container_apps_session_pools


def pool(kind: str, ready: int = 1, **more) -> SessionPool:
    life = LifecycleConfiguration(lifecycle_type="Timed", cooldown_period_in_seconds=450)
    scale = ScaleConfiguration(max_concurrent_sessions=5, ready_session_instances=ready)
    return SessionPool(**{
        "location": "westus2",
        "tags": {"team": "blue", "Stage": "test"},
        "container_type": kind,
        "pool_management_type": "Dynamic",
        "scale_configuration": scale,
        "dynamic_pool_configuration": DynamicPoolConfiguration(lifecycle_configuration=life),
        "session_network_configuration": SessionNetworkConfiguration(status="EgressDisabled"),
        **more,
    })  # fmt: skip


def shown(pool: SessionPool) -> dict:
    """What the client has understood of a pool."""
    return {
        "id": pool.id,
        "name": pool.name,
        "type": pool.type,
        "location": pool.location,
        "tags": dict(pool.tags or {}),
        "kind": pool.container_type,
        "most": pool.scale_configuration.max_concurrent_sessions,
        "ready": pool.scale_configuration.ready_session_instances,
        "cooldown": pool.dynamic_pool_configuration.lifecycle_configuration.cooldown_period_in_seconds,
        "egress": pool.session_network_configuration.status,
        "state": pool.provisioning_state,
        "endpoint": pool.pool_management_endpoint,
    }


class Trace:
    """The requests of an operation: a hook of the client itself."""

    def __init__(self):
        self.seen = []

    def __call__(self, response):
        request, answer = response.http_request, response.http_response
        what = "operation" if "locations" in request.url else "pool"
        self.seen.append([request.method, what, answer.status_code])


def refused(call, *words, **more) -> dict:
    try:
        found = call(*words, **more)
    except HttpResponseError as error:
        told = error.error
        return {"status": error.status_code, "code": told.code, "target": told.target, "message": told.message}
    raise AssertionError(f"it was not refused: {found}")


def life(address: str, name: str, kind: str) -> dict:
    """All that can be done with a pool, and what runs in it."""
    client, seen = pools(address), {}
    trace = Trace()
    made = client.begin_create_or_update(GROUP, name, pool(kind), raw_response_hook=trace).result()
    seen["made"], seen["making"] = shown(made), trace.seen
    seen["got"] = shown(client.get(GROUP, name))
    trace = Trace()
    again = client.begin_create_or_update(GROUP, name, pool(kind), raw_response_hook=trace).result()
    seen["again"], seen["making again"] = shown(again), trace.seen
    # What was got can be given back, with all that only answers have.
    trace = Trace()
    client.begin_create_or_update(GROUP, name, client.get(GROUP, name), raw_response_hook=trace).result()
    seen["giving back"] = trace.seen
    # A client that does not wait reads what the first answer says.
    seen["at once"] = shown(client.begin_create_or_update(GROUP, name, pool(kind), polling=False).result())

    headers = {"Authorization": f"Bearer {Token('executor').get_token().token}"}
    run = f"{made.pool_management_endpoint}/executions?identifier=chat-17&api-version=2025-10-02-preview"
    answer = requests.post(run, json=CODE[kind], headers=headers, timeout=60)
    seen["ran"] = [answer.status_code, answer.json()]

    trace = Trace()
    change = SessionPoolUpdatableProperties(
        tags={"team": None, "cost": "7"},
        scale_configuration=ScaleConfiguration(max_concurrent_sessions=6),
        session_network_configuration=SessionNetworkConfiguration(status="EgressEnabled"),
    )
    changed = client.begin_update(GROUP, name, change, raw_response_hook=trace).result()
    seen["changed"], seen["changing"] = shown(changed), trace.seen
    seen["got then"] = shown(client.get(GROUP, name))
    seen["in group"] = sorted(pool.name for pool in client.list_by_resource_group(GROUP))
    seen["in another group"] = sorted(pool.name for pool in client.list_by_resource_group("other"))
    seen["in subscription"] = sorted(pool.name for pool in client.list_by_subscription())
    elsewhere = pools(address, subscription="99999999-2222-3333-4444-555555555555")
    seen["in another subscription"] = sorted(pool.name for pool in elsewhere.list_by_subscription())
    seen["taken"] = refused(client.begin_create_or_update, "other", name, pool(kind))

    trace = Trace()
    seen["removed"] = client.begin_delete(GROUP, name, raw_response_hook=trace).result()
    seen["removing"] = trace.seen
    seen["missing"] = refused(client.get, GROUP, name)
    trace = Trace()
    client.begin_delete(GROUP, name, raw_response_hook=trace).result()
    seen["removing again"] = trace.seen
    return seen


def make(address: str, name: str, kind: str) -> dict:
    return shown(pools(address).begin_create_or_update(GROUP, name, pool(kind)).result())


def remove(address: str, name: str) -> dict:
    pools(address).begin_delete(GROUP, name).result()
    return {}


def errors(address: str, name: str) -> dict:
    """What is refused: by what it is called here, what the client raises."""
    client = pools(address)
    life = lambda **more: DynamicPoolConfiguration(lifecycle_configuration=LifecycleConfiguration(**more))  # noqa: E731
    wrong = {
        "most": {"scale_configuration": ScaleConfiguration(max_concurrent_sessions=0)},
        "ready": {"scale_configuration": ScaleConfiguration(max_concurrent_sessions=3, ready_session_instances=4)},
        "kind": {"container_type": "GpuBase"},
        "management": {"pool_management_type": "Manual"},
        "life": {"dynamic_pool_configuration": life(lifecycle_type="OnContainerExit", max_alive_period_in_seconds=60)},
        "cooldown": {"dynamic_pool_configuration": life(lifecycle_type="Timed", cooldown_period_in_seconds=0)},
        "network": {"session_network_configuration": SessionNetworkConfiguration(status="Sometimes")},
        "secrets": {"secrets": [SessionPoolSecret(name="key", value="value")]},
        "identity": {"managed_identity_settings": [ManagedIdentitySetting(identity="system", lifecycle="Main")]},
    }
    seen = {
        what: refused(client.begin_create_or_update, GROUP, name, pool("PythonLTS", **values))
        for what, values in wrong.items()
    }
    seen["name"] = refused(client.begin_create_or_update, GROUP, f"1-{name}", pool("PythonLTS"))
    seen["missing"] = refused(client.get, GROUP, name)
    seen["patch of nothing"] = refused(client.begin_update, GROUP, name, SessionPoolUpdatableProperties(tags={"a": "b"}))
    # The server's own: it looks like any other, and stays.
    seen["default"] = refused(client.begin_delete, GROUP, "python")
    for role in ("reader", "executor"):
        others = pools(address, role)
        seen[f"{role} reads"] = shown(others.get(GROUP, "shell"))["name"]
        seen[f"{role} lists"] = sorted(pool.name for pool in others.list_by_resource_group(GROUP))
        seen[f"{role} makes"] = refused(others.begin_create_or_update, GROUP, name, pool("Shell"))
        seen[f"{role} changes"] = refused(others.begin_update, GROUP, "shell", SessionPoolUpdatableProperties(tags={"a": "b"}))
        seen[f"{role} removes"] = refused(others.begin_delete, GROUP, "shell")
    return seen


def container(address: str, name: str, image: str, another: str) -> dict:
    """A pool of custom containers, and another image for it."""
    client, seen = pools(address), {}
    headers = {"Authorization": f"Bearer {Token('executor').get_token().token}"}

    def template(image: str) -> CustomContainerTemplate:
        env = [EnvironmentVar(name="APP_POOL", value="by the client"), EnvironmentVar(name="APP_SECRET", secret_ref="database")]
        limits = SessionContainerResources(cpu=0.5, memory="1Gi")
        one = SessionContainer(name="web", image=image, env=env, resources=limits)
        return CustomContainerTemplate(containers=[one], ingress=SessionIngress(target_port=80))

    def look(pool: SessionPool) -> dict:
        one = pool.custom_container_template.containers[0]
        return {
            "kind": pool.container_type,
            "state": pool.provisioning_state,
            "image": one.image,
            "env": [[variable.name, variable.value, variable.secret_ref] for variable in one.env],
            "limits": [one.resources.cpu, one.resources.memory],
            "port": pool.custom_container_template.ingress.target_port,
            "secrets": [[secret.name, secret.value] for secret in pool.secrets],
        }

    def ask(pool: SessionPool, session: str) -> dict:
        answer = requests.get(f"{pool.pool_management_endpoint}/some/path?identifier={session}", headers=headers, timeout=60)
        assert answer.status_code == 200, answer.text
        return answer.json()

    secrets = [SessionPoolSecret(name="database", value="postgres://of-the-client")]
    made = client.begin_create_or_update(
        GROUP, name, pool("CustomContainer", custom_container_template=template(image), secrets=secrets)
    ).result()
    seen["made"], seen["got"] = look(made), look(client.get(GROUP, name))
    seen["before"] = ask(made, "before")
    change = SessionPoolUpdatableProperties(custom_container_template=template(another))
    changed = client.begin_update(GROUP, name, change).result()
    seen["changed"], seen["before then"], seen["after"] = look(changed), ask(changed, "before"), ask(changed, "after")
    client.begin_delete(GROUP, name).result()
    seen["missing"] = refused(client.get, GROUP, name)
    return seen


def registry(address: str, name: str, image: str, server: str, user: str, password: str) -> dict:
    """A pool of an image that only its registry has, which asks who asks."""
    client, seen = pools(address), {}

    def pool_as(word: str) -> SessionPool:
        credentials = SessionRegistryCredentials(server=server, username=user, password_secret_ref="password")
        one = SessionContainer(name="web", image=image, resources=SessionContainerResources(cpu=0.5, memory="1Gi"))
        template = CustomContainerTemplate(containers=[one], ingress=SessionIngress(target_port=8080), registry_credentials=credentials)
        secrets = [SessionPoolSecret(name="password", value=word)]
        return pool("CustomContainer", custom_container_template=template, secrets=secrets)

    seen["refused"] = refused(lambda: client.begin_create_or_update(GROUP, name, pool_as("wrong")).result())
    made = client.begin_create_or_update(GROUP, name, pool_as(password)).result()
    credentials = made.custom_container_template.registry_credentials
    seen["made"] = [made.provisioning_state, credentials.server, credentials.username, credentials.password_secret_ref]
    seen["secrets"] = [[secret.name, secret.value] for secret in client.get(GROUP, name).secrets]
    headers = {"Authorization": f"Bearer {Token('executor').get_token().token}"}
    answer = requests.get(f"{made.pool_management_endpoint}/?identifier=user", headers=headers, timeout=60)
    seen["asked"] = [answer.status_code, answer.text]
    client.begin_delete(GROUP, name).result()
    return seen


if __name__ == "__main__":
    address, story, *words = sys.argv[1:]
    stories = {"life": life, "make": make, "remove": remove, "errors": errors, "container": container, "registry": registry}
    json.dump(stories[story](address, *words), sys.stdout)
