"""A model behind any endpoint that speaks OpenAI's chat completions."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import httpx
from opentelemetry.trace import SpanKind

from .telemetry import tracer

Message = dict[str, Any]

# Seconds without an answer.
PATIENCE = 180.0


class ModelFailed(Exception):
    """The endpoint was not reached, refused, or said what is no answer."""


@dataclass(frozen=True)
class Call:
    """A tool that the model wants called. `arguments` is None where they are no JSON."""

    id: str
    tool: str
    arguments: Any


@dataclass(frozen=True)
class Answer:
    """What the model said."""

    text: str
    calls: tuple[Call, ...] = ()
    # As it goes into the conversation.
    message: Message = field(default_factory=dict)


class Model:
    """`base` is the address up to and with `/v1`."""

    def __init__(self, base: str, name: str, key: str | None = None) -> None:
        self.name = name
        self._url = base.rstrip("/") + "/chat/completions"
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        # An endpoint that has just been started may not listen yet.
        self._http = httpx.Client(timeout=PATIENCE, headers=headers, transport=httpx.HTTPTransport(retries=4))

    def ask(self, messages: list[Message], tools: list[Message] | None = None, may_call: bool = True) -> Answer:
        """One answer to a conversation. With `tools` the model may ask for calls of them, if it `may_call`."""
        body: dict[str, Any] = {"model": self.name, "messages": messages}
        if tools:
            body["tools"] = tools
            body["tool_choice"] = "auto" if may_call else "none"
        attributes = {"gen_ai.operation.name": "chat", "gen_ai.request.model": self.name}
        with tracer.start_as_current_span("model.call", kind=SpanKind.CLIENT, attributes=attributes) as span:
            try:
                response = self._http.post(self._url, json=body)
                response.raise_for_status()
                told = response.json()
                answer = read(told["choices"][0]["message"])
            except httpx.HTTPStatusError as error:
                raise ModelFailed(f"the model's endpoint answered {error.response.status_code}") from error
            except httpx.HTTPError as error:
                raise ModelFailed(f"the model's endpoint was not reached: {error}") from error
            except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
                raise ModelFailed("the model's endpoint said something that is no chat completion") from error
            for ours, theirs in (("input", "prompt"), ("output", "completion")):
                if isinstance(count := (told.get("usage") or {}).get(f"{theirs}_tokens"), int):
                    span.set_attribute(f"gen_ai.usage.{ours}_tokens", count)
            return answer

    def __enter__(self) -> Model:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._http.close()


def read(message: Message) -> Answer:
    text, calls, kept = message.get("content") or "", [], []
    for call in message.get("tool_calls") or ():
        wanted = call["function"]
        try:
            arguments = json.loads(wanted["arguments"])
        except ValueError:
            arguments = None
        calls.append(Call(str(call["id"]), str(wanted["name"]), arguments))
        function = {"name": str(wanted["name"]), "arguments": str(wanted["arguments"])}
        kept.append({"id": str(call["id"]), "type": "function", "function": function})
    whole: Message = {"role": "assistant", "content": str(text)}
    if kept:
        whole["tool_calls"] = kept
    return Answer(str(text), tuple(calls), whole)
