#!/usr/bin/env python3
"""Writes the tables of docs/performance.md from a run that is kept.

    bench/performance.py write bench/runs/RUN     puts the tables of that run between the page's markers
    bench/performance.py check                    whether the page has what its run gives

The run is one of `sandpool bench run --peers`. What is measured comes from its summary.json, and nothing else; why a peer is ahead of us
is said here, and a row without a reason is an error.
"""

import json
import os
import re
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PAGE = os.path.join(ROOT, "docs/performance.md")
BEGIN, END = "<!-- begin: bench/performance.py write {} -->", "<!-- end -->"

# Scenario: what it is, the unit, and ours that stands beside it.
SCENARIOS = {
    "warm": ("`print(1)` in a live session", "ms", "warm"),
    "throughput-8": ("the same, 8 sessions at once", "/s", "throughput-8"),
    "new-session": ("new session of what is kept ready, libraries, first cell", "ms", "new-session"),
    "cold": ("nothing kept ready: start, libraries, first cell", "ms", "cold"),
    "cold-bare": ("the same without libraries", "ms", "cold"),
    "churn": ("sessions made, used and removed", "/s", "churn"),
    "delete": ("end asked for until all is gone", "ms", "delete"),
    "shell": ("`bash -c 'echo hi'`", "ms", "shell"),
    "node": ("new Node and its first result", "ms", "node"),
    "memory": ("memory of an idle session, libraries loaded", "MiB", "memory"),
}

PIPE = (
    "it is a loop on a pipe that executes text: no HTTP, no token, no IPython, no display, value or traceback, no limits and no record. "
    "Our figure is a whole HTTP request with all of these; beside a bare server and a bare Python it stands in the run's own report"
)
BARE_PEERS = {"bubblewrap", "runc", "gvisor", "sandbox-runtime"}

# Why a peer is ahead: by scenario, and where it depends on the peer, by both.
REASONS = {
    "memory, 1 session": "with one session, ours also carries what a whole pool shares: the interpreter that others are forked from, the ready "
    "sandboxes and the server. It is shared by all that follow",
    "delete": "ours also empties and removes the session's control groups and its namespaces, and the caller hears of it over HTTP",
    "churn": "ours takes each session through HTTP, all walls and its record",
    "cold": "ours builds all walls before the interpreter starts; with an empty reservoir nothing of that is done ahead",
    "cold-bare": "this peer loads no libraries and ours has them loaded",
    "node": "ours builds all walls and takes the request over HTTP",
    "shell": "ours answers over HTTP with the command's record",
}

WALLS = [
    "| System | Namespaces | Network | Control groups | seccomp | Landlock | Own kernel | Server |",
    "|---|---|---|---|---|---|---|---|",
    "| Sandpool, process level | all but time | own, empty | memory, pids, CPU | yes, by name | yes | no | HTTP, tokens |",
    "| bubblewrap | all but time | own, empty | no | no | no | no | no |",
    "| runc | mount, PID, IPC, UTS, network, cgroup | own, empty | yes | no (`runc spec` has none) | no | no | no |",
    "| gVisor | its own | none | no (as run here) | of its own process | no | yes, in user space | no |",
    "| sandbox-runtime | user, mount, PID, network | through a proxy | no | Unix sockets only | no | no | no |",
    "| Jupyter, both | none | the machine's | no | no | no | no | ZeroMQ; HTTP and WebSocket |",
]


def number(value):
    return f"{value:,.0f}" if value >= 99.5 else f"{value:.1f}" if value >= 9.95 else f"{value:.2f}" if value >= 0.1 else f"{value:.3f}"


def quantile(samples, part):
    """The smallest sample that is not below the part asked for, as the suite has it."""
    ordered = sorted(samples)
    return ordered[max(0, -int(-len(ordered) * part // 1) - 1)]


def of_peer(line):
    """The figure of a line: (value, p99, samples), or nothing."""
    if "skipped" in line:
        return None
    if line.get("seconds"):
        return line["count"] / line["seconds"], None, None
    if "memory_mib" in line:
        return line["memory_mib"], None, None
    samples = line.get("samples_ms")
    return (quantile(samples, 0.5), quantile(samples, 0.99), len(samples)) if samples else None


def of_ours(rows, scenario, sessions):
    """Our figure in the same form."""
    for row in rows:
        if row["scenario"] != scenario:
            continue
        if scenario == "memory":
            count = "1" if sessions == 1 else "100"
            if not re.search(rf", {count} sessions?: proportional share", row["measure"]):
                continue
        ours = row["ours"]
        return (ours["mean"], None, None) if row["unit"] == "perSecond" else (ours["p50"], ours["p99"], ours["count"])
    return None


def reason(peer, key, scenario):
    if scenario in ("warm", "throughput-8") and peer in BARE_PEERS:
        return PIPE
    found = REASONS.get(key) or REASONS.get(scenario)
    if not found:
        raise SystemExit(f"{peer} is ahead in {key}, and bench/performance.py does not say why")
    return found


def tables(directory):
    with open(os.path.join(ROOT, directory, "summary.json")) as file:
        run = json.load(file)
    with open(os.path.join(ROOT, directory, "command")) as file:
        command = file.read().strip()
    if not run.get("peers"):
        raise SystemExit(f"{directory}: a run without peers")
    machine, rows, peers = run["machine"], run["rows"], run["peers"]
    virtual = " (virtual)" if machine.get("isVirtual") else ""
    out = [
        f"Run of {run['began'][:16].replace('T', ' ')} UTC: {machine['processors']} x {machine['processor']}{virtual}, "
        f"{machine['memoryMib'] / 1024:.1f} GiB, Linux {machine['kernel']}, load before {machine['loadBefore']}; {run['version']}. "
        f"`{command}`; all samples are in [`{directory}`](../{directory}).",
        "",
    ]
    if machine["loadBefore"] > 0.5:
        out += ["**The machine was not idle before this run.** Milliseconds are too high and tails mean little; only large ratios count.", ""]
    versions, notes, behind, skipped = {}, [], [], {}
    for line in peers["lines"]:
        versions[line["peer"]] = line["version"]
    out += ["| Scenario | System | n | p50 | p99 | Unit | Ours | Peer / ours |", "|---|---|--:|--:|--:|---|--:|--:|"]
    for scenario, (words, unit, ours_of) in SCENARIOS.items():
        lines = [line for line in peers["lines"] if line["scenario"] == scenario]
        counts = sorted({line.get("sessions") or 0 for line in lines if "skipped" not in line})
        ours_counts = ([1, 100] if len(counts) > 1 else [1]) if scenario == "memory" else [None]
        for count in ours_counts:
            ours = of_ours(rows, ours_of, count)
            key = f"memory, {count} session{'s' if count != 1 else ''}" if count else scenario
            title = f"`{scenario}`: {words}" + (f", {count} session{'s' if count != 1 else ''}" if count else "")
            if ours:
                out.append(f"| {title} | **Sandpool** | {ours[2] or '-'} | {number(ours[0])} | {number(ours[1]) if ours[1] and unit == 'ms' else '-'} | {unit} | | |")
            for line in lines:
                if "skipped" in line:
                    skipped.setdefault((line["peer"], line["skipped"]), []).append(scenario)
                    continue
                if count and (line["sessions"] == 1) != (count == 1):
                    continue
                figure = of_peer(line)
                if not figure:
                    continue
                mark = ""
                if line.get("note"):
                    if line["note"] not in notes:
                        notes.append(line["note"])
                    mark = f" [{notes.index(line['note']) + 1}]"
                name = line["peer"] + mark + (f", {line['sessions']} of them" if count and count > 1 else "")
                ratio = figure[0] / ours[0] if ours and ours[0] else None
                out.append(
                    f"| {title if not ours else ''} | {name} | {figure[2] or '-'} | {number(figure[0])} | {number(figure[1]) if figure[1] else '-'} | {unit} "
                    f"| {number(ours[0]) if ours else '-'} | {number(ratio) if ratio else '-'} |"
                )
                ahead = ratio is not None and (ratio > 1 if unit == "/s" else ratio < 1)
                if ahead:
                    behind.append((title, line["peer"], figure[0], ours[0], unit, reason(line["peer"], key, scenario)))
    out += ["", "What a reader must know of a row:", ""] + [f"{at}. {note}" for at, note in enumerate(notes, 1)]
    out += ["", "Versions: " + "; ".join(f"{peer} {version}" for peer, version in sorted(versions.items())) + "."]
    out += ["", "Not measured, and why (nothing, if nothing follows):", ""]
    seen = {}
    for (peer, why), scenarios in skipped.items():
        for scenario in scenarios:
            if scenario not in seen.setdefault((peer, why), []):
                seen[peer, why].append(scenario)
    out += [f"- {peer}, {', '.join(f'`{scenario}`' for scenario in scenarios)}: {why}." for (peer, why), scenarios in seen.items()]
    out += [f"- {trouble}" for trouble in peers.get("trouble", [])]
    out += ["", "### Where we are behind, and why", ""]
    if behind:
        out += ["| Scenario | System | It | We | Unit | Why |", "|---|---|--:|--:|---|---|"]
        out += [f"| {title} | {peer} | {number(it)} | {number(we)} | {unit} | {why} |" for title, peer, it, we, unit, why in behind]
    else:
        out.append("In no row of this run.")
    out += ["", "### What stands around the code", "", *WALLS]
    return "\n".join(out)


def page_with(directory, text):
    parts = re.split(r"^<!-- begin: .*-->\n|^<!-- end -->", text, flags=re.M)
    if len(parts) != 3:
        raise SystemExit(f"{PAGE}: needs a begin and an end marker")
    return parts[0] + BEGIN.format(directory) + "\n\n" + tables(directory) + "\n\n" + END + parts[2]


def main():
    with open(PAGE) as file:
        text = file.read()
    if sys.argv[1:2] == ["write"] and len(sys.argv) == 3:
        with open(PAGE, "w") as file:
            file.write(page_with(os.path.relpath(os.path.abspath(sys.argv[2]), ROOT), text))
    elif sys.argv[1:] == ["check"]:
        found = re.search(r"^<!-- begin: bench/performance.py write (\S+) -->", text, flags=re.M)
        if not found:
            raise SystemExit(f"{PAGE}: names no run")
        if page_with(found[1], text) != text:
            raise SystemExit(f"{PAGE} is not what {found[1]} gives: bench/performance.py write {found[1]}")
    else:
        raise SystemExit(__doc__)


if __name__ == "__main__":
    main()
