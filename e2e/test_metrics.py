"""Metrics of a real server, scraped by a real Prometheus, with the alert rules and the dashboard that are in deploy/."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest
import requests
import yaml

from documents import ROOT, examples_of
from sandpool import Server, children, descendants, kill, of_process, wait_for

DEPLOY = ROOT / "deploy"
ALERTS = DEPLOY / "prometheus/alerts.yaml"

# What test_docs.py leaves to us.
EXAMPLES = [one for one in examples_of("docs/metrics.md") if "scrape_configs" in one.code]

# Azure's names end as OpenMetrics' histograms do; what else promtool finds is wrong.
AZURE = re.compile(r"azure_pool_\w+_pod_count non-histogram .* should not have \"_count\" suffix|")

CONFIG = """
listen: 127.0.0.1:0
auth:
  apiKeys:
    - {{ name: prometheus, sha256: {digest}, role: reader }}
    - {{ name: of-python, sha256: {other}, role: reader, pools: [python] }}
tenants:
  - name: acme
    apiKeys:
      - {{ name: acme, sha256: {acme} }}
    quota: {{ sessions: 1, egressBytesPerHour: 1Gi }}
pools:
  - metadata: {{ name: python }}
    spec:
      containerType: PythonLTS
      scaleConfiguration: {{ readySessionInstances: 2 }}
  - metadata: {{ name: shell }}
    spec:
      containerType: Shell
      egress: {{ mode: open }}
      scaleConfiguration: {{ readySessionInstances: 1 }}
"""

KEYS = {"digest": "key-of-prometheus", "other": "key-of-one-pool", "acme": "key-of-acme"}


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def program(name: str) -> str:
    found = shutil.which(name)
    if not found:
        if os.environ.get("SANDPOOL_MUST") == "1":
            pytest.fail(f"SANDPOOL_MUST=1, and there is no {name} here (Debian: apt-get install prometheus)")
        pytest.skip(f"SKIPPED: there is no {name} here (Debian: apt-get install prometheus)")
    return found


class Prometheus:
    """A Prometheus that scrapes a server as deploy/prometheus/scrape.yaml says, only more often."""

    def __init__(self, place: Path, server):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = f"127.0.0.1:{free.getsockname()[1]}"
        text = (DEPLOY / "prometheus/scrape.yaml").read_text()
        config = yaml.safe_load(text.replace("/etc/prometheus", str(place)))
        [job] = config["scrape_configs"]
        job |= {"scrape_interval": "1s", "static_configs": [{"targets": [server.endpoint.removeprefix("http://")]}]}
        config["global"] = {"evaluation_interval": "1s"}
        (place / "sandpool.key").write_text(KEYS["digest"])
        (place / "prometheus.yaml").write_text(yaml.safe_dump(config))
        shutil.copy(ALERTS, place / "sandpool-alerts.yaml")
        self.log = place / "log"
        self.process = subprocess.Popen(
            [program("prometheus"), f"--config.file={place}/prometheus.yaml", f"--storage.tsdb.path={place}/data",
             f"--web.listen-address={self.address}", "--log.level=warn"],
            stdout=self.log.open("w"), stderr=subprocess.STDOUT,
        )  # fmt: skip

    def get(self, path: str, **parameters) -> dict:
        answer = requests.get(f"http://{self.address}/api/v1/{path}", params=parameters, timeout=30)
        assert answer.status_code == 200, f"{path} {parameters}: {answer.text}\n{self.log.read_text()}"
        return answer.json()["data"]

    def query(self, query: str) -> list[dict]:
        return self.get("query", query=query)["result"]

    def value(self, query: str) -> float | None:
        result = self.query(query)
        assert len(result) <= 1, result
        return float(result[0]["value"][1]) if result else None

    def looks(self):
        """Waits until all that has happened so far has been scraped."""
        now = time.time()
        wait_for(lambda: (self.value('timestamp(up{job="sandpool"})') or 0) > now, "a scrape")

    def is_up(self) -> bool:
        try:
            return self.value('up{job="sandpool"}') == 1
        except requests.RequestException:
            assert self.process.poll() is None, self.log.read_text()
            return False

    def close(self):
        self.process.terminate()
        self.process.wait(timeout=30)


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    """A server, and a Prometheus that looks at it."""
    program("prometheus")
    place = tmp_path_factory.mktemp("prometheus")
    server = Server(config=CONFIG.format(**{name: digest(key) for name, key in KEYS.items()}))
    prometheus = None
    try:
        prometheus = Prometheus(place, server)
        wait_for(prometheus.is_up, "Prometheus to scrape")
        yield server, prometheus
    finally:
        if prometheus:
            prometheus.close()
        server.remove()


def run(server, pool: str, session: str, body: dict, **more) -> requests.Response:
    return server.native("POST", f"/pools/{pool}/sessions/{session}/executions", json=body, **more)


def test_promtool_takes_what_is_served(watched):
    server, _ = watched
    assert run(server, "python", "linted", {"code": "1"}).status_code == 200
    text = server.native("GET", "/metrics", token=KEYS["digest"]).text
    done = subprocess.run([program("promtool"), "check", "metrics"], input=text, capture_output=True, text=True, timeout=60)
    assert [line for line in done.stderr.splitlines() if not AZURE.fullmatch(line)] == []
    assert done.stderr.count("_pod_count") == 3, done.stdout + done.stderr


def test_metrics_are_for_a_reader_of_everything(watched, start):
    server, _ = watched
    for key, status in ((KEYS["digest"], 200), (KEYS["other"], 403), (KEYS["acme"], 403), ("wrong", 401)):
        assert server.native("GET", "/metrics", token=key).status_code == status, key
    assert requests.get(server.endpoint + "/metrics", timeout=10).status_code == 401
    other = start(config="listen: 127.0.0.1:0\nmetrics: { open: true }\npools: [{ metadata: { name: shell }, spec: { containerType: Shell } }]\n")
    answer = requests.get(other.endpoint + "/metrics", timeout=10)
    assert answer.status_code == 200 and 'sandpool_pool_ready_sandboxes{pool="shell"}' in answer.text
    assert requests.get(other.endpoint + "/pools", timeout=10).status_code == 401


def test_prometheus_counts_what_happened(watched):
    server, prometheus = watched
    seen = lambda query: prometheus.value(query) or 0  # noqa: E731
    wait_for(lambda: seen('sandpool_pool_ready_sandboxes{pool="python"}') >= 2, "the pool to be full")
    prometheus.looks()
    ended = 'sum(sandpool_pool_executions_total{pool="python"})'
    before = seen(ended), seen('sandpool_pool_sessions_opened_total{pool="python"}')
    secret = "do-not-tell-anybody"
    for session in ("counted-1", "counted-2"):
        for code in ("6 * 7", f"print('{secret}')", f"raise ValueError('{secret}')"):
            assert run(server, "python", session, {"code": code}).status_code == 200
    # An Azure client, and one that is wrong.
    azure = server.pool("python")
    assert azure.modern("counted-1", code="1 + 1", codeInputType="inline", executionType="synchronous")["status"] == "Succeeded"
    assert azure.call("GET", "files", "counted-1", token="wrong").status_code == 401
    assert run(server, "shell", "counted-1", {"command": "exit 3"}).status_code == 200
    wait_for(lambda: seen(ended) == before[0] + 7, "the executions to be counted")
    assert seen('sandpool_pool_sessions_opened_total{pool="python"}') == before[1] + 2
    assert seen('sandpool_pool_executions_total{pool="python",outcome="raised"}') == 2
    assert seen('sandpool_pool_executions_total{pool="shell",outcome="exited"}') == 1
    assert seen('sandpool_pool_execution_seconds_count{pool="python"}') == before[0] + 7
    assert seen('azure_pool_executing_pod_count{pool="python"}') == seen('sandpool_pool_sessions{pool="python"}') >= 2
    assert seen('sandpool_http_requests_total{dialect="azure",status="200"}') >= 1
    assert seen('sandpool_http_refusals_total{code="Unauthorized"}') >= 1
    # A tenant that asks for more than its quota.
    assert run(server, "shell", "first", {"command": "true"}, token=KEYS["acme"]).status_code == 200
    assert run(server, "shell", "second", {"command": "true"}, token=KEYS["acme"]).status_code == 429
    wait_for(lambda: seen('sandpool_tenant_quota_refusals_total{tenant="acme",resource="sessions"}') == 1, "the refusal")
    assert seen('sandpool_tenant_quota_used{tenant="acme",resource="sessions"}') == 1
    assert prometheus.value('sandpool_tenant_egress_bytes_total{tenant="acme",direction="sent"}') == 0
    assert prometheus.value("sandpool_store_trouble") == 0
    text = server.native("GET", "/metrics", token=KEYS["digest"]).text
    sandboxes = [one["sandbox"] for one in server.native("GET", "/pools/python/sessions").json()["value"]]
    for word in (secret, "counted-1", *sandboxes):
        assert word not in text, f"{word} is told"


def test_no_metric_has_more_series_than_the_configuration_makes(watched):
    server, prometheus = watched
    prometheus.looks()
    before = prometheus.value('count({job="sandpool"})')
    for number in range(20):
        run(server, "shell", f"one-of-many-{number}", {"command": "true"})
        server.native("DELETE", f"/pools/shell/sessions/one-of-many-{number}")
        server.native("GET", f"/made-up/{number}")
        server.native("GET", f"/pools/made-up-{number}")
    prometheus.looks()
    # Some statuses and codes may be new.
    assert prometheus.value('count({job="sandpool"})') <= before + 10


def test_the_rules_are_good_and_each_is_tested():
    promtool = program("promtool")
    done = subprocess.run([promtool, "check", "rules", ALERTS], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    tests = DEPLOY / "prometheus/alerts.test.yaml"
    done = subprocess.run([promtool, "test", "rules", tests.name], cwd=tests.parent, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    [group] = yaml.safe_load(ALERTS.read_text())["groups"]
    tested = {
        case["alertname"]
        for test in yaml.safe_load(tests.read_text())["tests"]
        for case in test["alert_rule_test"]
        if case["exp_alerts"]
    }
    assert {rule["alert"] for rule in group["rules"]} == tested


def test_the_rules_ask_for_metrics_that_are_there(watched):
    server, prometheus = watched
    described = set(re.findall(r"# TYPE (\S+)", server.native("GET", "/metrics", token=KEYS["digest"]).text))
    texts = [ALERTS.read_text(), (DEPLOY / "grafana/sandpool.json").read_text()]
    for name in set(re.findall(r"\b(?:sandpool|azure)_[a-z_]+\b", " ".join(texts))):
        assert name in described or name.removesuffix("_bucket") in described, name
    wait_for(lambda: len(prometheus.get("rules")["groups"]) == 1, "the rules to be loaded")
    [group] = prometheus.get("rules")["groups"]
    wait_for(lambda: all(rule["health"] == "ok" for rule in prometheus.get("rules")["groups"][0]["rules"]), "all to be evaluated")
    assert len(group["rules"]) == len(yaml.safe_load(ALERTS.read_text())["groups"][0]["rules"])


def test_a_session_that_is_killed_is_an_alert(watched):
    server, prometheus = watched
    firing = lambda: [  # noqa: E731
        alert for alert in prometheus.get("alerts")["alerts"] if alert["state"] == "firing" and alert["labels"]["alertname"] == "SandpoolSessionsLost"
    ]
    assert firing() == []
    marker = f"sleep {int(time.time())}.25"
    begun = run(server, "shell", "to-be-killed", {"command": marker, "waitSeconds": 0})
    assert begun.status_code == 202, begun.text

    def victim() -> int:
        """The first process of the sandbox in which the marker runs."""
        for pid in children(server.launcher):
            inside = descendants(pid)
            if any(marker.split()[1] in of_process(one, "cmdline") for one in inside):
                return pid
        return 0

    kill(wait_for(victim, "the command"))
    [alert] = wait_for(firing, "the alert")
    assert alert["labels"]["pool"] == "shell" and alert["labels"]["severity"] == "ticket"
    assert "lost sessions" in alert["annotations"]["summary"]
    assert run(server, "shell", "to-be-killed", {"command": "true"}).status_code == 410
    assert prometheus.value('sum(sandpool_pool_sessions_lost_total{pool="shell"})') == 1


def queries() -> list[tuple[str, str]]:
    """The dashboard's: the title of a panel, and what it asks."""
    panels = json.loads((DEPLOY / "grafana/sandpool.json").read_text())["panels"]
    return [(panel["title"], target["expr"]) for panel in panels for target in panel.get("targets", [])]


def test_the_dashboards_queries_are_answered(watched):
    server, prometheus = watched
    # Something for rates to be of.
    for _ in range(3):
        run(server, "python", "for-rates", {"code": "1"})
        run(server, "shell", "second", {"command": "true"}, token=KEYS["acme"])
        server.native("GET", "/pools/none")
        time.sleep(1.1)
    assert len(queries()) > 30
    empty = set()
    for title, query in queries():
        for name, value in {"$__rate_interval": "5m", "$instance": ".*", "$pool": ".*"}.items():
            query = query.replace(name, value)
        assert "$" not in query, query
        result = prometheus.query(query)
        # A quantile of nothing is no number.
        if not [one for one in result if one["value"][1] != "NaN"]:
            empty.add(title)
    assert empty == set(), "panels without data"
    variables = [one for one in json.loads((DEPLOY / "grafana/sandpool.json").read_text())["templating"]["list"] if one["type"] == "query"]
    for variable in variables:
        metric, label = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["definition"]).groups()
        assert prometheus.get(f"label/{label}/values", **{"match[]": metric.replace("$instance", ".*")}), variable["name"]


@pytest.mark.parametrize("example", EXAMPLES, ids=str)
def test_the_documents_scrape_configuration_is_the_shipped_one(example, tmp_path):
    assert example.code == (DEPLOY / "prometheus/scrape.yaml").read_text()
    shutil.copy(ALERTS, tmp_path / "sandpool-alerts.yaml")
    (tmp_path / "sandpool.key").touch()
    config = tmp_path / "prometheus.yaml"
    config.write_text(example.code.replace("/etc/prometheus", str(tmp_path)))
    done = subprocess.run([program("promtool"), "check", "config", config], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
