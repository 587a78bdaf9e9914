"""A stand-in for a model: it speaks OpenAI's chat completions and says what its script says.

It is for tests, and for a first look without a model.

    python -m travel_agent.standin --port 8101
    python -m travel_agent.standin --port 8101 --chart hostile.py

It also answers POST /stolen, for hostile code that calls out, and prints what it was brought.
"""

from __future__ import annotations

import argparse
import json
import threading
from collections.abc import Callable
from datetime import date, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

# What a model says to a request: a text, or calls of tools as (name, arguments).
Said = str | list[tuple[str, dict[str, Any]]]
Script = Callable[[dict[str, Any]], Said]

CHART = """```python
for place in places:
    dates = [day["date"] for day in place["days"]]
    plt.plot(dates, [day["high"] for day in place["days"]], color="#d1495b", marker="o", label=f"{place['place']}, high")
    plt.plot(dates, [day["low"] for day in place["days"]], color="#00798c", marker="o", label=f"{place['place']}, low")
plt.ylabel("degrees Celsius")
plt.legend()
plt.title("Highs and lows")
```"""


def trip(charts: list[str], place: str = "Lisbon", start: date | None = None) -> Script:
    """Research, a chart, then words. `charts` are the answers to questions for chart code, the last of them from then on."""
    begin = start or date.today() + timedelta(days=2)
    left = list(charts)

    def said(request: dict[str, Any]) -> Said:
        if "tools" not in request:
            return left.pop(0) if len(left) > 1 else left[0]
        results = [message for message in request["messages"] if message["role"] == "tool"]
        if not results:
            end = begin + timedelta(days=2)
            return [("weather", {"place": place, "start": begin.isoformat(), "end": end.isoformat()})]
        if len(results) == 1:
            return [("chart", {"about": "highs and lows of each day"})]
        days = json.loads(results[0]["content"]).get("days", [])
        told = [f"{day['date']}: {'museums' if (day['rain'] or 0) > 1 else 'a walk'}, up to {day['high']} C" for day in days]
        return "\n".join([f"A plan for {place}.", *told])

    return said


class StandIn(ThreadingHTTPServer):
    """On loopback, until `close`. `asked` has the requests and `stolen` what hostile code brought."""

    daemon_threads = True

    def __init__(self, script: Script, port: int = 0) -> None:
        self.asked: list[dict[str, Any]] = []
        self.stolen: list[str] = []
        self.keys: list[str | None] = []
        standin = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
                if self.path == "/stolen":
                    standin.stolen.append(body.decode(errors="replace"))
                    print(f"stolen: {standin.stolen[-1]!r}", flush=True)
                    answer: dict[str, Any] = {}
                else:
                    request = json.loads(body)
                    standin.asked.append(request)
                    standin.keys.append(self.headers.get("Authorization"))
                    answer = completion(script(request))
                text = json.dumps(answer).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's word
                pass

        super().__init__(("127.0.0.1", port), Handler)
        self.base = f"http://127.0.0.1:{self.server_port}/v1"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.shutdown()
        self.server_close()


def completion(said: Said) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": said if isinstance(said, str) else None}
    if not isinstance(said, str):
        message["tool_calls"] = [
            {"id": f"call_{at}", "type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
            for at, (name, arguments) in enumerate(said)
        ]
    return {
        "id": "chatcmpl-0",
        "object": "chat.completion",
        "created": 0,
        "model": "standin",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop" if isinstance(said, str) else "tool_calls"}],
        "usage": {"prompt_tokens": 7, "completion_tokens": 11, "total_tokens": 18},
    }


def main() -> None:
    parser = argparse.ArgumentParser("travel_agent.standin", description="A stand-in for a model.")
    parser.add_argument("--port", type=int, default=8101)
    parser.add_argument("--chart", metavar="FILE", type=Path, help="what it says when it is asked for chart code")
    given = parser.parse_args()
    chart = f"```python\n{given.chart.read_text()}```" if given.chart else CHART
    standin = StandIn(trip([chart]), given.port)
    print(f"a stand-in for a model is at {standin.base}", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
