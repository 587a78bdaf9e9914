"""The agent: a conversation with a model that may ask for two tools, within limits.

    what is wanted ─> model ─┬─> weather: fixed code ─> a session that reaches the weather service ─> numbers ─> model
                             ├─> chart: the model is asked for code ─> it is checked ─> a session that reaches nothing
                             └─> the plan, in words

The model chooses what is asked for. It does not choose what is run to answer, except for the chart's code.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from typing import Any

from opentelemetry import trace
from opentelemetry.trace import StatusCode

from . import chart
from .model import Call, Message, Model
from .telemetry import tracer
from .tools import Tools
from .weather import BadRequest, BadWeather, Request, Weather, service

# Questions to the model, and places, in one run.
MAX_ROUNDS = 8
MAX_PLACES = 6
# How often chart code is refused before it is run, and given its own exception, until there is no chart.
MAX_REFUSALS = 2
MAX_EXCEPTIONS = 1
# Characters of a traceback that the model is told, of what a run printed that is shown, and of what a person wants.
MAX_TRACEBACK = 1_500
MAX_SHOWN = 1_000
MAX_WISH = 2_000

PROMPT = """You plan trips. Today is {today}.

First find out the weather of each place with the tool `weather`. Where it says that days were measured they are of an
earlier year: say so, and do not call it a forecast. Then have it drawn once with the tool `chart`. Then answer with a plan
for each day, in plain text, that fits the weather."""

TEXT = {"type": "string"}
TOOLS: list[Message] = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather of a place, for each day: highest and lowest temperature (C) and rain (mm).",
            "parameters": {
                "type": "object",
                "properties": {
                    "place": {**TEXT, "description": "name of a town"},
                    "start": {**TEXT, "description": "first day, YYYY-MM-DD"},
                    "end": {**TEXT, "description": "last day, YYYY-MM-DD"},
                },
                "required": ["place", "start", "end"],
            },
        },
    },
    {
        "type": "function",
        "function": {
            "name": "chart",
            "description": "Draws the weather that was found so far, for the person to see.",
            "parameters": {
                "type": "object",
                "properties": {"about": {**TEXT, "description": "what the chart shall show, in a sentence"}},
                "required": ["about"],
            },
        },
    },
]


@dataclass(frozen=True)
class Step:
    """Something that happened on the way: `weather`, `refused`, `failed`, `chart` or `printed`, and words for people."""

    kind: str
    text: str


@dataclass
class Plan:
    """What a run came to."""

    text: str = ""
    weather: list[Weather] = field(default_factory=list)
    picture: bytes | None = None


class Agent:
    """`weather_url` is where the weather service is, if it is not Open-Meteo's own. `tell` hears each step."""

    def __init__(
        self,
        model: Model,
        tools: Tools,
        weather_url: str | None = None,
        tell: Callable[[Step], object] = lambda step: None,
    ) -> None:
        self._model = model
        self._tools = tools
        self._urls = service(weather_url)
        self._tell = tell

    def run(self, wish: str, before: list[Message] | None = None) -> Plan:
        """Plans a trip. `before` is what a person and the agent said earlier."""
        plan = Plan()
        messages: list[Message] = [
            {"role": "system", "content": PROMPT.format(today=date.today().isoformat())},
            *(before or []),
            {"role": "user", "content": wish[:MAX_WISH]},
        ]
        with tracer.start_as_current_span("agent.run", attributes={"travel.tools": self._tools.name}):
            for left in reversed(range(MAX_ROUNDS)):
                # The last question is one that only words can answer.
                answer = self._model.ask(messages, TOOLS, may_call=left > 0)
                if not answer.calls or not left:
                    plan.text = answer.text or "The model gave no plan."
                    break
                messages.append(answer.message)
                for call in answer.calls:
                    told = json.dumps(self._call(call, plan))
                    messages.append({"role": "tool", "tool_call_id": call.id, "content": told})
        return plan

    def _call(self, call: Call, plan: Plan) -> dict[str, Any]:
        """Carries out what the model asked for. What it cannot have is told to it as an error."""
        if call.tool == "weather":
            return self._research(call.arguments, plan)
        if call.tool == "chart":
            return self._draw(call.arguments, plan)
        return {"error": "there is no such tool"}

    def _research(self, arguments: Any, plan: Plan) -> dict[str, Any]:
        with tracer.start_as_current_span("tool.weather", attributes={"travel.tools": self._tools.name}):
            try:
                request = Request.read(arguments)
                if len(plan.weather) >= MAX_PLACES:
                    raise BadRequest(f"at most {MAX_PLACES} places are looked at")
                ran = self._tools.research(request.code(self._urls))
                if ran.error is not None:
                    raise BadWeather(ran.error.strip().rpartition("\n")[2][:200])
                weather = Weather.read(request.place, ran.printed)
            except (BadRequest, BadWeather) as error:
                self._say("failed", f"no weather: {error}")
                trace.get_current_span().set_status(StatusCode.ERROR, type(error).__name__)
                return {"error": str(error)}
            plan.weather.append(weather)
            kind = "as it was measured" if weather.measured else "as it is forecast"
            self._say("weather", f"{weather.place}, {weather.days[0].date} to {weather.days[-1].date}, {kind}")
            return weather.as_json()

    def _draw(self, arguments: Any, plan: Plan) -> dict[str, Any]:
        about = arguments.get("about") if isinstance(arguments, dict) else None
        if not isinstance(about, str) or not plan.weather:
            return {"error": "about is needed, and some weather before"}
        with tracer.start_as_current_span("tool.chart", attributes={"travel.tools": self._tools.name}) as span:
            why = self._try_to_draw(about[:300], plan)
            if why is not None:
                span.set_status(StatusCode.ERROR, "no chart")
                return {"error": why}
            return {"drawn": True}

    def _try_to_draw(self, about: str, plan: Plan) -> str | None:
        """Asks for code and runs it, until there is a picture or it was tried too often. Returns why there is none."""
        messages: list[Message] = [
            {"role": "system", "content": chart.PROMPT},
            {"role": "user", "content": chart.question(about, plan.weather)},
        ]
        refusals = exceptions = 0
        while True:
            answer = self._model.ask(messages)
            code = chart.code_in(answer.text)
            messages.append({"role": "assistant", "content": answer.text})
            if objections := chart.objections(code):
                why = "; ".join(objections)[:300]
                refusals += 1
                self._say("refused", f"chart code was not run: {why}")
                if refusals > MAX_REFUSALS:
                    return "the chart code was refused too often"
                messages.append({"role": "user", "content": f"Your code was not run: {why}. Write it anew, within the rules."})
                continue
            ran = self._tools.draw(chart.wrapped(code, plan.weather, self._tools.target))
            if ran.printed.strip():
                self._say("printed", ran.printed.strip()[:MAX_SHOWN])
            if ran.error is None:
                plan.picture = ran.picture
                self._say("chart", "drawn")
                return None
            exceptions += 1
            self._say("failed", f"chart code failed: {ran.error.strip().rpartition(chr(10))[2][:300]}")
            if exceptions > MAX_EXCEPTIONS:
                return "the chart code failed too often"
            told = ran.error[-MAX_TRACEBACK:]
            messages.append({"role": "user", "content": f"Your code failed:\n{told}\nWrite it anew, within the rules."})

    def _say(self, kind: str, text: str) -> None:
        self._tell(Step(kind, text))
