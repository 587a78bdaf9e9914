"""Weather research: what is sent to the session, and what of its answer is believed."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from datetime import date
from importlib import resources
from typing import Any

# Days of one request, and characters of a place's name.
MAX_DAYS = 31
MAX_PLACE = 100
# Of a line that is read at all.
MAX_PRINTED = 64 << 10

PUBLIC = {
    "geocoding": "https://geocoding-api.open-meteo.com/v1/search",
    "forecast": "https://api.open-meteo.com/v1/forecast",
    "archive": "https://archive-api.open-meteo.com/v1/archive",
}


class BadRequest(ValueError):
    """What the model asked for cannot be researched."""


class BadWeather(ValueError):
    """What was printed is no weather."""


def service(base: str | None) -> dict[str, str]:
    """The addresses of the weather service: Open-Meteo's own, or all three below `base`."""
    if base is None:
        return PUBLIC
    return {name: base.rstrip("/") + url[url.index("/v1/") :] for name, url in PUBLIC.items()}


@dataclass(frozen=True)
class Request:
    """What is to be researched."""

    place: str
    start: date
    end: date

    @classmethod
    def read(cls, arguments: Any) -> Request:
        """The model's arguments, checked."""
        try:
            place, start, end = arguments["place"], arguments["start"], arguments["end"]
            request = cls(place, date.fromisoformat(start), date.fromisoformat(end))
        except (KeyError, TypeError, ValueError) as error:
            raise BadRequest("place, start and end are needed, the days as YYYY-MM-DD") from error
        if not isinstance(place, str) or not place.strip() or len(place) > MAX_PLACE or not place.isprintable():
            raise BadRequest(f"place is a name of at most {MAX_PLACE} characters")
        if not 0 <= (request.end - request.start).days < MAX_DAYS:
            raise BadRequest(f"end is not before start, and they are at most {MAX_DAYS} days")
        return request

    def code(self, urls: dict[str, str]) -> str:
        """The fixed code with this request. What the model said is in it as data alone: a Python literal of a JSON text."""
        fixed = resources.files(__package__).joinpath("forecast.py").read_text("utf-8")
        given = {"urls": urls, "place": self.place, "start": self.start.isoformat(), "end": self.end.isoformat()}
        return f"{fixed}\n\nprint(json.dumps(forecast(**json.loads({json.dumps(given)!r}))))\n"


@dataclass(frozen=True)
class Day:
    """One day; degrees Celsius and millimetres, None where the service has none."""

    date: str
    high: float | None
    low: float | None
    rain: float | None


@dataclass(frozen=True)
class Weather:
    """The weather of a place. `measured`: it is of an earlier year, and no forecast."""

    place: str
    measured: bool
    days: tuple[Day, ...]

    @classmethod
    def read(cls, place: str, printed: str) -> Weather:
        """What the fixed code printed. Days and numbers are taken, and no text: nobody's words reach the model."""
        try:
            if len(printed) > MAX_PRINTED:
                raise ValueError("too long")
            told = json.loads(printed)
            days = tuple(
                Day(date.fromisoformat(day["date"]).isoformat(), *(number(day[name]) for name in ("high", "low", "rain")))
                for day in told["days"]
            )
            measured = told["measured"]
        except (KeyError, TypeError, ValueError) as error:
            raise BadWeather(f"what the weather tool printed cannot be read: {type(error).__name__}") from error
        if not 0 < len(days) <= MAX_DAYS or not isinstance(measured, bool):
            raise BadWeather("what the weather tool printed has no days, or too many")
        return cls(place, measured, days)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def number(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError("no number")
    return float(value)
