"""The fixed code of the weather tool. It is sent to a session as it stands here, and needs only the standard library.

It is given a place, two days and where the service is, and prints one line of JSON. The service's format is Open-Meteo's.
"""

import datetime
import json
import urllib.parse
import urllib.request
from typing import Any

# Days from today that are forecast. What is further away is told by how the same days were in the last measured year.
FORECAST_DAYS = 15
# Days before today that the forecasts' host still tells, and those that the archive may not have yet.
RECENT_DAYS = 60
ARCHIVE_DAYS = 7
DAILY = "temperature_2m_max,temperature_2m_min,precipitation_sum"


def ask(url: str, **query: object) -> Any:
    with urllib.request.urlopen(f"{url}?{urllib.parse.urlencode(query)}", timeout=20) as answer:
        return json.loads(answer.read(1 << 20))


def years_before(day: datetime.date, years: int) -> datetime.date:
    """The same day of an earlier year; the 28th for the 29th of February."""
    try:
        return day.replace(year=day.year - years)
    except ValueError:
        return day.replace(year=day.year - years, day=28)


def forecast(urls: dict[str, str], place: str, start: str, end: str) -> dict[str, object]:
    today = datetime.date.today()
    first, last = datetime.date.fromisoformat(start), datetime.date.fromisoformat(end)
    found = ask(urls["geocoding"], name=place, count=1, language="en", format="json").get("results")
    if not found:
        raise LookupError("the weather service knows no place of this name")
    recent, far = today - datetime.timedelta(RECENT_DAYS), today + datetime.timedelta(FORECAST_DAYS)
    years = 0
    if recent <= first and last <= far:
        url = urls["forecast"]
    else:
        url = urls["archive"]
        while years_before(last, years) > today - datetime.timedelta(ARCHIVE_DAYS):
            years += 1
    daily = ask(
        url,
        latitude=found[0]["latitude"],
        longitude=found[0]["longitude"],
        daily=DAILY,
        timezone="auto",
        start_date=years_before(first, years),
        end_date=years_before(last, years),
    )["daily"]
    columns = zip(daily["time"], *(daily[name] for name in DAILY.split(",")), strict=True)
    days = [{"date": date, "high": high, "low": low, "rain": rain} for date, high, low, rain in columns]
    return {"measured": url == urls["archive"], "days": days}
