"""Metrics: the same facts on a server that keeps to Prometheus's contract and on the real one, where there is one."""

import json
import math
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from opsmesh.tools.metrics.v1 import metrics_tool_service_pb2 as pb
from services.gateway import backends
from services.gateway.tools.metrics import MetricsTools
from services.mesh.call import working
from services.mesh.errors import Refusal
from tests.gateway import prometheus
from tests.gateway.web import Responder, Web, web

TARGET = "svc:demo/checkout"
QUERY = "opsmesh.tools.metrics.v1.MetricsToolService/QueryInstant"
NOON = 1_800_000_000
DAY = 86_400


@pytest.fixture(autouse=True)
def call() -> Iterator[None]:
    """Put every test into a call with thirty seconds."""
    with working("service/automation", QUERY, 30):
        yield


@pytest.fixture(params=["contract", "real"], scope="module")
async def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    """Give the address of a Prometheus."""
    if request.param == "contract":
        async with prometheus.contract() as url:
            yield url
    elif prometheus.BINARY is None:
        pytest.skip("there is no prometheus on the PATH")
    else:
        async with prometheus.real(tmp_path_factory.mktemp("prometheus")) as url:
            yield url


def tools(folder: Path, *entries: dict[str, Any]) -> MetricsTools:
    """Return the family on a backends file with these entries."""
    path = folder / "backends.yaml"
    path.write_text(yaml.safe_dump({"metrics": list(entries)}))
    return MetricsTools(backends.load(path, folder).metrics)


@asynccontextmanager
async def answering(folder: Path, respond: Responder, **more: Any) -> AsyncIterator[tuple[MetricsTools, Web]]:
    """Give the family on a server that answers as a test says."""
    async with web(respond) as server:
        family = tools(folder, {"prometheus": {"url": server.url} | more})
        yield family, server
        await family.close()


def instant(query: str, **more: Any) -> pb.QueryInstantRequest:
    """Return a request for a moment."""
    return pb.QueryInstantRequest(target_id=TARGET, query=query, **more)


def ranged(query: str, seconds: int, step: int = 0, **more: Any) -> pb.QueryRangeRequest:
    """Return a request for a range that ends at a fixed moment."""
    request = pb.QueryRangeRequest(target_id=TARGET, query=query, **more)
    request.start_time.FromSeconds(NOON - seconds)
    request.end_time.FromSeconds(NOON)
    if step:
        request.step_duration.FromSeconds(step)
    return request


async def test_a_vector_has_labels_time_and_value(server: str, tmp_path: Path) -> None:
    """At the moment asked for."""
    request = instant('label_replace(vector(2), "job", "checkout", "", "")')
    request.evaluation_time.FromSeconds(NOON)
    found = await tools(tmp_path, {"prometheus": {"url": server}}).query_instant(request, {})
    assert found.result_type == pb.RESULT_TYPE_VECTOR
    (series,) = found.series
    assert dict(series.labels) == {"job": "checkout"}
    assert [(one.sample_time.ToSeconds(), one.value) for one in series.points] == [(NOON, 2.0)]
    assert not found.truncated


async def test_a_scalar_is_a_series_without_labels(server: str, tmp_path: Path) -> None:
    """One point."""
    found = await tools(tmp_path, {"prometheus": {"url": server}}).query_instant(instant("7"), {})
    assert found.result_type == pb.RESULT_TYPE_SCALAR
    assert [one.value for one in found.series[0].points] == [7.0]


async def test_what_is_no_number_says_so(server: str, tmp_path: Path) -> None:
    """NaN is marked, the infinities are values."""
    family = tools(tmp_path, {"prometheus": {"url": server}})
    nothing = (await family.query_instant(instant("vector(0) / vector(0)"), {})).series[0].points[0]
    assert (nothing.not_a_number, nothing.value) == (True, 0.0)
    endless = (await family.query_instant(instant("vector(1) / vector(0)"), {})).series[0].points[0]
    assert (endless.not_a_number, endless.value) == (False, math.inf)


async def test_a_range_is_a_matrix_in_a_hundred_steps(server: str, tmp_path: Path) -> None:
    """Without a step one is chosen; both ends are points."""
    found = await tools(tmp_path, {"prometheus": {"url": server}}).query_range(ranged("vector(1)", 3600), {})
    assert found.result_type == pb.RESULT_TYPE_MATRIX
    assert found.step_duration.ToSeconds() == 36
    times = [one.sample_time.ToSeconds() for one in found.series[0].points]
    assert (len(times), times[0], times[-1]) == (101, NOON - 3600, NOON)


async def test_the_largest_range_fits(server: str, tmp_path: Path) -> None:
    """Seven days, just below 500 steps."""
    request = ranged("vector(1)", 7 * DAY, step=1210)
    found = await tools(tmp_path, {"prometheus": {"url": server}}).query_range(request, {})
    assert len(found.series[0].points) == 500


async def test_more_series_than_asked_for_are_cut_and_said(server: str, tmp_path: Path) -> None:
    """Whether or not the server knows the parameter `limit`."""
    family = tools(tmp_path, {"prometheus": {"url": server}})
    found = await family.query_instant(instant(prometheus.THIRTY, max_series=3), {})
    assert (len(found.series), found.truncated) == (3, True)
    some = await family.query_range(ranged(prometheus.THIRTY, 60), {})
    assert (len(some.series), some.truncated) == (10, True)
    everything = await family.query_instant(instant(prometheus.THIRTY, max_series=30), {})
    assert (len(everything.series), everything.truncated) == (30, False)


async def test_a_wrong_expression_is_refused_in_the_servers_words(server: str, tmp_path: Path) -> None:
    """So that whoever asked can correct it; no retry is suggested."""
    family = tools(tmp_path, {"prometheus": {"url": server}})
    with pytest.raises(Refusal, match=r"BACKEND_REFUSED.*parse error") as caught:
        await family.query_instant(instant("sum("), {})
    assert caught.value.retry_after is None
    with pytest.raises(Refusal, match=r"BACKEND_REFUSED.*the expression is a string"):
        await family.query_instant(instant('"words"'), {})


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (ranged("vector(1)", -1), "must not be before start_time"),
        (ranged("vector(1)", 7 * DAY + 1), "at most 7 days"),
        (ranged("vector(1)", 7 * DAY, step=60), "must be at least 1210s"),
    ],
)
async def test_a_range_out_of_bounds_asks_nobody(tmp_path: Path, request_: pb.QueryRangeRequest, words: str) -> None:
    """The refusal names the field."""
    async with answering(tmp_path, prometheus.respond) as (family, server):
        with pytest.raises(Refusal, match="INVALID_ARGUMENT") as caught:
            await family.query_range(request_, {})
        assert words in caught.value.violations[0].description
        assert not server.asked


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (503, {"status": "error", "errorType": "timeout", "error": "query timed out"}, "timeout: query timed out"),
        (422, {"status": "error", "errorType": "canceled", "error": "canceled"}, "canceled"),
        (500, {"status": "error", "errorType": "internal", "error": "disk"}, "internal: disk"),
        (401, {}, "credentials do not suffice"),
        (429, {}, "HTTP status 429"),
        (200, [], "nothing to use"),
        (200, {"status": "success"}, "no Prometheus answer"),
        (200, {"status": "success", "data": {"resultType": "vector", "result": [{"metric": 3}]}}, "cannot be read"),
        (200, {"status": "success", "data": {"resultType": "vector", "result": [{"value": [1]}]}}, "cannot be read"),
        (302, {}, "HTTP status 302"),
    ],
)
async def test_what_is_no_answer_can_be_tried_again(tmp_path: Path, status: int, body: Any, words: str) -> None:
    """Not now, not allowed, or not understood: BACKEND_UNAVAILABLE."""
    async with answering(tmp_path, lambda _: (status, json.dumps(body).encode())) as (family, _):
        with pytest.raises(Refusal, match=f"BACKEND_UNAVAILABLE.*{words}"):
            await family.query_instant(instant("vector(1)"), {})


async def test_a_flood_is_refused(tmp_path: Path) -> None:
    """Five megabytes are more than any tool hands on."""
    async with answering(tmp_path, lambda _: (200, b" " * 5_000_000)) as (family, _):
        with pytest.raises(Refusal, match=r"ANSWER_TOO_LARGE.*more than 4 MiB"):
            await family.query_instant(instant("vector(1)"), {})


async def test_a_server_that_hangs_is_given_up(tmp_path: Path) -> None:
    """Before the caller's own deadline, so that the caller learns why."""
    async with answering(tmp_path, lambda _: None) as (family, _):
        with working("service/automation", QUERY, 0.6), pytest.raises(Refusal, match=r"BACKEND_UNAVAILABLE.*no answer"):
            await family.query_instant(instant("vector(1)"), {})


async def test_warnings_and_native_histograms_are_told(tmp_path: Path) -> None:
    """A histogram is no number: left out, and said; what a stranger wrote is one line."""
    series = [{"metric": {"a": "x\ny\u200b"}, "value": [1, "1"]}, {"metric": {}, "histogram": [1, {}]}]
    body = {"status": "success", "data": {"resultType": "vector", "result": series}, "warnings": ["slow"]}
    body["infos"] = ["metric might not be a counter"]
    async with answering(tmp_path, lambda _: (200, json.dumps(body).encode())) as (family, _):
        found = await family.query_instant(instant("x"), {})
    assert found.truncated
    assert list(found.warnings) == ["slow", "metric might not be a counter"]
    assert dict(found.series[0].labels) == {"a": "x y"}


async def test_credentials_come_from_secret_files(tmp_path: Path) -> None:
    """A bearer token and a tenant; the expression travels in the body."""
    (tmp_path / "token").write_text("t0ken\n")
    (tmp_path / "token").chmod(0o600)
    more = {"bearer_token_file": "token", "tenant": "shop"}
    async with answering(tmp_path, prometheus.respond, **more) as (family, server):
        await family.query_instant(instant("vector(1)"), {})
    (asked,) = server.asked
    assert asked.headers["authorization"] == "Bearer t0ken"
    assert asked.headers["x-scope-orgid"] == "shop"
    assert (asked.path, asked.form["query"], asked.form["limit"]) == ("/api/v1/query", "vector(1)", "21")
    assert 0 < int(asked.form["timeout"].removesuffix("ms")) <= 30_000


async def test_a_target_has_its_own_server_or_that_of_the_rest(tmp_path: Path) -> None:
    """Without either the refusal carries the lines to add."""
    async with web(prometheus.respond) as own, web(prometheus.respond) as rest:
        first = {"targets": [TARGET], "prometheus": {"url": own.url}}
        family = tools(tmp_path, first, {"prometheus": {"url": f"{rest.url}/"}})
        await family.query_instant(instant("vector(1)"), {})
        await family.query_instant(pb.QueryInstantRequest(target_id="svc:demo/other", query="vector(1)"), {})
        assert (len(own.asked), len(rest.asked)) == (1, 1)
        alone = tools(tmp_path, first)
        with pytest.raises(Refusal, match=r"BACKEND_MISSING.*metrics: \[\{targets: \['svc:demo/other'\]") as caught:
            await alone.query_instant(pb.QueryInstantRequest(target_id="svc:demo/other", query="vector(1)"), {})
        added = yaml.safe_load(caught.value.metadata["lines"])
        assert tools(tmp_path, *added["metrics"])
