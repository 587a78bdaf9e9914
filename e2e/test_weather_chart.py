"""A chart of the weather, as an agent would draw it: plain requests, a token from DefaultAzureCredential."""

from __future__ import annotations

import io
import json
import os
from collections import Counter

import requests
from PIL import Image

WEATHER = {
    "Lisbon": {"days": list(range(1, 8)), "max": [24, 26, 27, 25, 23, 22, 24], "min": [15, 16, 17, 16, 15, 14, 15]},
    "Oslo": {"days": list(range(1, 8)), "max": [9, 11, 12, 8, 7, 6, 8], "min": [2, 3, 4, 1, 0, -1, 1]},
}
BACKGROUND, PANEL = "#101418", "#1b2229"
WARM, COLD = "#ff7043", "#4fc3f7"

CODE = f"""
import json
import matplotlib
matplotlib.use("Agg")
import matplotlib.pyplot as plt

weather = json.loads('''{json.dumps(WEATHER)}''')
figure, panels = plt.subplots(1, 2, figsize=(10, 4), facecolor="{BACKGROUND}")
for panel, (city, data) in zip(panels, weather.items()):
    panel.set_facecolor("{PANEL}")
    panel.plot(data["days"], data["max"], color="{WARM}", linewidth=3, label="maximum")
    panel.plot(data["days"], data["min"], color="{COLD}", linewidth=3, label="minimum")
    panel.set_title(city, color="white")
    panel.tick_params(colors="white")
    for spine in panel.spines.values():
        spine.set_color("white")
figure.tight_layout()
figure.savefig("/mnt/data/chart.png", facecolor=figure.get_facecolor())
print("saved", len(weather), "cities")
"""


def rgb(colour: str) -> tuple[int, int, int]:
    return tuple(int(colour[at : at + 2], 16) for at in (1, 3, 5))


def close(one, other, by: int = 12) -> bool:
    return all(abs(a - b) <= by for a, b in zip(one, other))


def test_the_weather_chart(as_client, server):
    from azure.identity import DefaultAzureCredential

    token = DefaultAzureCredential().get_token("https://dynamicsessions.io/.default").token
    endpoint = os.environ["AZURE_POOL_MANAGEMENT_ENDPOINT"]
    headers = {"Authorization": f"Bearer {token}"}
    session = "chart-session-1"
    answer = requests.post(
        f"{endpoint}/code/execute?api-version=2024-02-02-preview&identifier={session}",
        headers=headers,
        json={"properties": {"codeInputType": "inline", "executionType": "synchronous", "code": CODE}},
        timeout=60,
    )
    assert answer.status_code == 200, answer.text
    properties = answer.json()["properties"]
    assert (properties["status"], properties["stdout"]) == ("Success", "saved 2 cities\n"), properties
    got = requests.get(
        f"{endpoint}/files/content/chart.png?api-version=2024-02-02-preview&identifier={session}",
        headers=headers,
        timeout=60,
    )
    assert got.status_code == 200
    image = Image.open(io.BytesIO(got.content)).convert("RGB")
    assert image.size == (1000, 400)
    for half in (image.crop((0, 0, 500, 400)), image.crop((500, 0, 1000, 400))):
        colours = Counter(half.getdata())
        total = half.width * half.height
        assert sum(n for colour, n in colours.items() if close(colour, rgb(PANEL), 2)) > total * 0.5, "a dark panel"
        assert sum(n for colour, n in colours.items() if close(colour, rgb(BACKGROUND), 2)) > total * 0.1
        assert sum(n for colour, n in colours.items() if sum(colour) > 600) < total * 0.1, "little that is bright"
        rows = {}
        for name, line in (("maximum", WARM), ("minimum", COLD)):
            found = [at for at, colour in enumerate(half.getdata()) if close(colour, rgb(line))]
            assert len(found) > 500, f"a line for the {name}"
            columns = {at % half.width for at in found}
            assert max(columns) - min(columns) > 300, f"the {name} goes across its panel"
            rows[name] = sum(at // half.width for at in found) / len(found)
        assert rows["maximum"] < rows["minimum"], "the warmer line is above the colder one"
    requests.delete(f"{endpoint}/session?api-version=2025-10-02-preview&identifier={session}", headers=headers, timeout=60)
