"""The command line: one plan, or the web interface."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx
from sandpool import Sandpool, SandpoolError

from .agent import Agent, Step
from .model import Model, ModelFailed
from .telemetry import Traced, export_spans
from .tools import InProcess, InSandpool, Tools
from .web import serve


def arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("travel_agent", description="Plans a trip that fits the weather, and draws the weather.")
    parser.add_argument("wish", nargs="?", help="what is wanted, such as 'three days in Lisbon in May'")
    parser.add_argument(
        "--tools",
        choices=["sandpool", "local"],
        default="sandpool",
        help="where the tools' code runs: in sessions of Sandpool (SANDPOOL_ENDPOINT, SANDPOOL_TOKEN), or, for comparison only, "
        "in this very process [default: sandpool]",
    )
    parser.add_argument(
        "--model",
        metavar="URL",
        default=os.environ.get("OPENAI_BASE_URL"),
        help="an endpoint that speaks OpenAI's chat completions, up to /v1 [env: OPENAI_BASE_URL; its key: OPENAI_API_KEY]",
    )
    parser.add_argument(
        "--model-name",
        metavar="NAME",
        default=os.environ.get("OPENAI_MODEL", "default"),
        help="which of its models [env: OPENAI_MODEL] [default: default]",
    )
    parser.add_argument(
        "--weather",
        metavar="URL",
        default=os.environ.get("TRAVEL_AGENT_WEATHER"),
        help="a weather service with Open-Meteo's interface [env: TRAVEL_AGENT_WEATHER] [default: Open-Meteo]",
    )
    parser.add_argument("--chart", metavar="FILE", type=Path, default=Path("chart.png"), help="[default: chart.png]")
    parser.add_argument("--serve", metavar="PORT", type=int, help="the web interface, on 127.0.0.1")
    given = parser.parse_args(words)
    if not given.model:
        parser.error("--model or OPENAI_BASE_URL is needed")
    if (given.wish is None) == (given.serve is None):
        parser.error("either what is wanted, or --serve")
    return given


@contextlib.contextmanager
def sandboxed() -> Iterator[InSandpool]:
    """The tools in Sandpool, whose requests carry the trace."""
    with Sandpool(transport=Traced(httpx.HTTPTransport(retries=1))) as client:
        yield InSandpool(client)


def main(words: Sequence[str] | None = None) -> int:
    given = arguments(words)
    export_spans()
    with contextlib.ExitStack() as stack:
        model = stack.enter_context(Model(given.model, given.model_name, os.environ.get("OPENAI_API_KEY")))
        try:
            if given.serve is not None:
                variants: dict[str, Tools] = {"sandpool": stack.enter_context(sandboxed()), "local": InProcess()}
                serve(given.serve, model, variants, given.weather)
                return 0
            tools: Tools = stack.enter_context(sandboxed()) if given.tools == "sandpool" else InProcess()
            return once(given.wish, Agent(model, tools, given.weather, say), given.chart)
        except (ModelFailed, SandpoolError, ValueError) as error:
            print(f"travel_agent: {error}", file=sys.stderr)
            return 1


def say(step: Step) -> None:
    print(f"[{step.kind}] {plain(step.text)}", file=sys.stderr, flush=True)


def plain(text: str) -> str:
    """The text without what a terminal would obey: it comes from models and from code that nobody has read."""
    return "".join(one if one.isprintable() or one == "\n" else "\N{REPLACEMENT CHARACTER}" for one in text)


def once(wish: str, agent: Agent, chart: Path) -> int:
    plan = agent.run(wish)
    print(plain(plan.text))
    if plan.picture is not None:
        chart.write_bytes(plan.picture)
        print(f"the chart is in {chart}", file=sys.stderr)
    return 0
