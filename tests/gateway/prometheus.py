"""A Prometheus for tests: the real one where it is installed, and one that keeps to the contract of its HTTP API.

The second knows a handful of expressions; how it wraps, bounds and refuses is what
https://prometheus.io/docs/prometheus/latest/querying/api/ says, and what the real one is seen to do by the same tests.
"""

import asyncio
import json
import math
import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import httpx

from services.local.files import free_port
from services.local.waiting import until
from tests.gateway.web import Asked, web

BINARY: Final = shutil.which("prometheus")
# As the real one refuses: more points than this in one series.
POINTS_MAX: Final = 11_000
BOOT_SECONDS: Final = 30


def constant(*values: tuple[dict[str, str], float]) -> dict[str, Any]:
    """Return an instant vector that never changes."""
    return {"kind": "vector", "series": values}


MANY = constant(*(({"n": str(number)}, float(number)) for number in range(1, 31)))
KNOWN: Final[dict[str, dict[str, Any]]] = {
    "vector(1)": constant(({}, 1.0)),
    'label_replace(vector(2), "job", "checkout", "", "")': constant(({"job": "checkout"}, 2.0)),
    "vector(0) / vector(0)": constant(({}, math.nan)),
    "vector(1) / vector(0)": constant(({}, math.inf)),
    "7": {"kind": "scalar", "value": 7.0},
    '"words"': {"kind": "string", "value": "words"},
    # What the real one makes of thirty `label_replace` in a row with `or`.
    " or ".join(f'label_replace(vector({n}), "n", "{n}", "", "")' for n in range(1, 31)): MANY,
}
THIRTY: Final = next(name for name, value in KNOWN.items() if value is MANY)


def text(value: float) -> str:
    """Return a number as Prometheus writes it."""
    return {math.inf: "+Inf", -math.inf: "-Inf"}.get(value, "NaN" if math.isnan(value) else f"{value:g}")


def bad(words: str) -> tuple[int, bytes]:
    """Return a refusal."""
    return 400, json.dumps({"status": "error", "errorType": "bad_data", "error": words}).encode()


def respond(asked: Asked) -> tuple[int, bytes]:
    """Answer like a Prometheus of version 3."""
    form, kind = asked.form, asked.path.rpartition("/")[2]
    if asked.method != "POST" or asked.path not in {"/api/v1/query", "/api/v1/query_range"}:
        return 404, b"404 page not found\n"
    if not re.fullmatch(r"\d+(ms|s|m)|[\d.]+", form.get("timeout", "1s")):
        return bad(f'invalid parameter "timeout": cannot parse "{form["timeout"]}" to a valid duration')
    found = KNOWN.get(form.get("query", ""))
    if found is None:
        return bad('invalid parameter "query": 1:4: parse error: unexpected end of input')
    if kind == "query":
        moments = [float(form["time"])]
    else:
        start, end, step = (float(form[name]) for name in ("start", "end", "step"))
        if end < start:
            return bad('invalid parameter "end": end timestamp must not be before start time')
        if (end - start) / step > POINTS_MAX:
            return bad("exceeded maximum resolution of 11,000 points per timeseries.")
        moments = [start + step * number for number in range(math.floor((end - start) / step) + 1)]
    return 200, json.dumps({"status": "success"} | result(found, kind, moments, int(form.get("limit", "0")))).encode()


def result(found: dict[str, Any], kind: str, moments: list[float], limit: int) -> dict[str, Any]:
    """Return the data of an answer."""
    if found["kind"] in {"scalar", "string"} and kind == "query":
        value = text(found["value"]) if found["kind"] == "scalar" else found["value"]
        return {"data": {"resultType": found["kind"], "result": [moments[0], value]}}
    series = found.get("series", [({}, found.get("value"))])
    shown = series[:limit] if limit else series
    name = "value" if kind == "query" else "values"
    values = [[[moment, text(value)] for moment in moments] for _, value in shown]
    answer: dict[str, Any] = {
        "data": {
            "resultType": "vector" if kind == "query" else "matrix",
            "result": [
                {"metric": labels, name: one[0] if kind == "query" else one}
                for (labels, _), one in zip(shown, values, strict=True)
            ],
        }
    }
    if len(shown) < len(series):
        answer["warnings"] = ["results truncated due to limit"]
    return answer


@asynccontextmanager
async def contract() -> AsyncIterator[str]:
    """Serve the one that keeps to the contract; gives its address."""
    async with web(respond) as server:
        yield server.url


@asynccontextmanager
async def real(folder: Path) -> AsyncIterator[str]:
    """Run the real one, which scrapes nothing; gives its address."""
    port = free_port()
    (folder / "prometheus.yml").write_text("global: {}\n")
    process = await asyncio.create_subprocess_exec(
        str(BINARY),
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )

    url = f"http://127.0.0.1:{port}"

    async def ready() -> None:
        # It listens, and answers 503, before it has opened its storage.
        async with httpx.AsyncClient(timeout=5, trust_env=False) as http:
            (await http.get(f"{url}/-/ready")).raise_for_status()

    try:
        await until(ready, "Prometheus", BOOT_SECONDS, httpx.HTTPError)
        yield url
    finally:
        process.terminate()
        await process.wait()
