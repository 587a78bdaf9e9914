"""`isolation: microvm`: machines beside the other level in one server. Here their processor is emulated, which makes no boundary, and says so.

What the first clients do is done in machines too: CI runs their tests again with SANDPOOL_E2E_ISOLATION=microvm.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from sandpool import Server, Target, check_error, descendants, json, kill, of_process, start_time, wait_for
from test_levels import KINDS, pool, run
from test_life import left_behind

MACHINE = {"isolation": "microvm"}

# What tells kernels apart, as a session's own code can ask; and the check that is often shown.
PROBES = {
    "release": "uname -r",
    "version": "cat /proc/version",
    "booted": "grep btime /proc/stat",
    "hypervisor": "grep -c -m1 '^flags.* hypervisor' /proc/cpuinfo",
    "first": "ls /proc/1/root 2>&1",
    "popular": "ls /proc/1/root/etc/kubernetes 2>&1",
}


@pytest.fixture(scope="module")
def target():
    served = Target(lambda request: (b"served " + request.path.encode(), {}))
    yield served
    served.close()


@pytest.fixture(scope="module")
def machines(target):
    """One server with pools of machines, and one of the process level."""
    egress = {
        "mode": "allow-list",
        "allow": [f"files.test:{target.port}"],
        "allowAddresses": ["127.0.0.0/8"],
        "hosts": {"files.test": ["127.0.0.1"], "other.test": ["127.0.0.1"]},
    }
    pools = [pool("python", KINDS["python"], None, **MACHINE, egress=egress), pool("shell", KINDS["shell"], None, **MACHINE), pool("process", KINDS["shell"], None)]
    server = Server(config=json.dumps({"listen": "127.0.0.1:0", "pools": pools}))
    yield server
    server.remove()


def shell(server: Server, name: str, session: str, command: str) -> str:
    answer = server.native("POST", f"/pools/{name}/sessions/{session}/executions", json={"command": command})
    assert answer.status_code == 200, answer.text
    return answer.json()["stdout"]


def test_its_kernel_is_its_own_and_who_shares_the_hosts_fails_the_same_probes(machines):
    inside = {name: shell(machines, "shell", "probed", command) for name, command in PROBES.items()}
    shared = {name: shell(machines, "process", "probed", command) for name, command in PROBES.items()}
    here = {"release": os.uname().release, "version": Path("/proc/version").read_text(), "booted": next(line for line in open("/proc/stat") if "btime" in line)}
    for name, of_host in here.items():
        assert inside[name].strip() != of_host.strip(), name
        # The control: the same question, in a sandbox that shares the host's kernel.
        assert shared[name].strip() == of_host.strip() or name == "booted" and abs(int(shared[name].split()[1]) - int(of_host.split()[1])) < 3, name
    assert inside["hypervisor"].strip() == "1"
    # The popular check says the same of both: it proves nothing.
    assert inside["popular"] == shared["popular"] and "/proc/1/root/etc/kubernetes" in inside["popular"], (inside, shared)


def test_a_session_tells_what_was_proved_of_its_wall_and_that_an_emulation_is_none(machines):
    shell(machines, "shell", "told", "true")
    detail = machines.native("GET", "/pools/shell/sessions/told").json()
    assert detail["level"] == "microvm-emulated (not a boundary)", detail["level"]
    proved = next(line for line in detail["wall"] if line.startswith("kernel: proved"))
    boot = re.search(r"boot id ([0-9a-f-]{36}); kernel release (\S+); hypervisor bit set; /proc/1/root (.*)", proved)
    assert boot and boot[1] != Path("/proc/sys/kernel/random/boot_id").read_text().strip() and boot[2] in shell(machines, "shell", "told", "uname -r"), proved
    assert "image" in boot[3].split() and "etc" not in boot[3].split(), proved
    assert any("emulated" in line for line in detail["weaker"]), detail["weaker"]
    assert machines.native("GET", "/pools/process").json()["level"] == "process"


def test_the_vmm_is_behind_the_walls_of_a_process_and_has_a_filter_of_its_own(machines):
    shell(machines, "shell", "walled", "true")
    emulators = [pid for pid in descendants(machines.launcher) if "qemu-system" in of_process(pid, "cmdline")]
    assert emulators
    for pid in emulators:
        status = dict(line.split(":", 1) for line in of_process(pid, "status").splitlines())
        assert int(status["CapEff"], 16) == 0 and status["NoNewPrivs"].strip() == "1" and status["Seccomp"].strip() == "2"
        assert min(int(uid) for uid in status["Uid"].split()) > 65_535, status["Uid"]
        # Ours, and QEMU's own (`-sandbox on`), which it puts over them.
        assert "-sandbox" in of_process(pid, "cmdline") and int(status["Seccomp_filters"]) > 4, status["Seccomp_filters"]
        network = of_process(pid, "net/dev").splitlines()[2:]
        assert [line.split(":")[0].strip() for line in network] == ["lo"], network
        assert not any("/dev/" in os.readlink(f"/proc/{pid}/fd/{fd}") and "/dev/null" not in os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd"))


def test_a_machine_reaches_what_its_pool_allows_and_nothing_else(machines, target):
    reach = "import urllib.request\ndef get(host, path):\n    try: return urllib.request.urlopen(f'http://{host}:PORT/{path}', timeout=20).read().decode()\n    except Exception as error: return type(error).__name__\n"
    reach = reach.replace("PORT", str(target.port))
    said = run(machines, "python", "reaches", code=reach + "print(get('files.test', 'x'), get('other.test', 'x'), get('10.1.2.3', 'x'))")
    assert "served /x HTTPError HTTPError" in json.dumps(said), said
    decisions = machines.native("GET", "/pools/python/sessions/reaches/egress/decisions").json()["decisions"]
    assert {(one["host"], one["decision"]) for one in decisions} >= {("files.test", "allowed"), ("other.test", "refused")}, decisions
    # At the same time, and more than one port's buffers hold.
    many = reach + "import concurrent.futures as f\nwith f.ThreadPoolExecutor(16) as pool: said = list(pool.map(lambda n: get('files.test', n), range(48)))\nprint(said == [f'served /{n}' for n in range(48)])"
    assert "True" in json.dumps(run(machines, "python", "reaches", code=many))


def test_files_ports_and_terminals_pass_through_the_one_port(machines):
    data = os.urandom(3_000_000)
    assert machines.native("PUT", "/pools/shell/sessions/passes/files/big", data=data).status_code == 200
    assert machines.native("GET", "/pools/shell/sessions/passes/files/big").content == data
    shell(machines, "shell", "passes", "mkdir -p site; echo inside > site/index.html")
    assert "3000000" in shell(machines, "shell", "passes", "stat -c %s big")


def test_what_a_machine_cannot_be_is_refused_with_the_reason(machines):
    admin = machines.token("--role", "admin", "--ttl", "10m")

    def refused(why: str, **more):
        wrong = pool("wrong", KINDS["shell"], None, **MACHINE, **more)
        answer = machines.native("PUT", "/pools/wrong", admin, json=wrong)
        assert answer.status_code >= 400 or why in json.dumps(wait_for(lambda: machines.native("GET", "/pools/wrong").json().get("trouble"), "the pool's trouble")), answer.text
        assert answer.status_code < 400 or why in answer.text, answer.text
        machines.native("DELETE", "/pools/wrong", admin)

    refused("localServers", localServers=False)
    refused("memory", resources={"cpu": 1, "memory": "64Mi"})
    refused("ociRuntime", ociRuntime="runc")


def test_machines_outlive_a_killed_server_and_end_with_their_launcher(machines):
    config = json.dumps({"listen": "127.0.0.1:0", "pools": [pool("shell", KINDS["shell"], None, **MACHINE)]})
    server = Server(config=config)
    try:
        shell(server, "shell", "kept", "echo 7 > kept; (sleep 1000 &) ; echo on")
        kill(server.process())
        wait_for(server.is_ready, "the next server", limit=90)
        assert shell(server, "shell", "kept", "cat kept").strip() == "7"
        pids = {pid: start_time(pid) for pid in descendants(server.launcher) | {server.launcher}}
        kill(server.launcher)
        wait_for(lambda: not left_behind(server, pids), "the end of all that a killed launcher had")
    finally:
        server.remove()


def test_doctor_says_what_there_is_for_machines_and_which_level_it_gives(machines):
    # The server's own settings and images, which are those of this state directory.
    said = machines.json("doctor")["machines"]
    assert said["missing"] == [] and {one["vmm"] for one in said["vmms"]} == {"qemu", "firecracker", "cloud-hypervisor"}
    qemu = next(one for one in said["vmms"] if one["vmm"] == "qemu")
    assert qemu["why"] is None and qemu["version"] and qemu["floor"] == "7.2", qemu
    assert said["prepared"]["level"] == "microvm-emulated (not a boundary)" and said["prepared"]["isEmulated"], said
    text = machines.run("doctor", check=False).stdout
    assert "Machines, for pools with isolation: microvm" in text and "not a boundary" in text, text
