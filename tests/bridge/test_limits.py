"""Back-pressure: quotas of sources, the limit of a client, and one source that cannot keep the others out."""

import asyncio
import uuid
from pathlib import Path

import pytest

from opsmesh.config.v1 import sources_pb2
from opsmesh.ingest.v1 import ingest_service_pb2 as pb
from services.bridge.batches import BODIES_MAX, Batches
from services.bridge.limits import CLIENTS_MAX, Limits
from services.bridge.waiting import FairQueue, FullError, Waiting
from services.mesh.config import load_yaml
from services.mesh.pace import Bucket
from tests.bridge.house import BEARER, SOURCES, MemoryIngest, running, write_config
from tests.ingest.house import ROOT, alert, delivery, eventually, notification

BODY = notification(alert())
ONE = "quota: {per_second: 1, burst: 1}\n    busy_answer: BUSY_ANSWER_TOO_MANY_REQUESTS"
QUOTAS = SOURCES.replace(
    "  - source: grafana\n", "    quota: {per_second: 1, burst: 3}\n  - source: grafana\n"
).replace("    none: {}\n", f"    none: {{}}\n    {ONE}\n")


def test_tokens_come_back_evenly() -> None:
    """A burst, then the rate; an idle time fills it up again, never above the burst."""
    bucket = Bucket(2, 3, 0)
    assert [bucket.take(0) for _ in range(4)] == [0, 0, 0, 0.5]
    assert (bucket.take(0.5), bucket.take(0.5)) == (0, 0.5)
    assert [bucket.take(100) for _ in range(4)] == [0, 0, 0, 0.5]


# What each sender does after these is in its documentation: most drop a 4xx for good, or call it delivered (SNS).
TOLD = {
    "alertmanager": 503,
    "grafana": 503,
    "datadog": 503,
    "pagerduty": 429,
    "pagerduty-events": 429,
    "sns": 503,
    "sentry": 503,
    "newrelic": 503,
    "opsgenie": 503,
    "zabbix": 503,
    "azure-monitor": 429,
    "gcp-monitoring": 503,
    "dynatrace": 503,
    "splunk": 503,
    "elastic": 503,
    "kubernetes": 503,
    "github": 503,
    "cloudevents": 429,
    "generic": 503,
    "change": 503,
}


def test_every_shipped_source_is_told_what_its_sender_understands() -> None:
    """The whole table, so that a source that is added has to be looked up."""
    shipped = load_yaml(ROOT / "deploy" / "sources.yaml", sources_pb2.Sources).sources
    limits = Limits(shipped, 0, lambda: 0.0)
    assert {one.source: limits.status(one.source) for one in shipped} == TOLD


@pytest.mark.parametrize(
    ("source", "status"),
    [
        (sources_pb2.Source(source="prod-azure", parser="azure-monitor"), 429),
        (sources_pb2.Source(source="pagerduty", busy_answer=sources_pb2.Source.BUSY_ANSWER_UNAVAILABLE), 503),
        (sources_pb2.Source(source="x", busy_answer=sources_pb2.Source.BUSY_ANSWER_TOO_MANY_REQUESTS), 429),
    ],
)
def test_each_sender_is_told_what_it_comes_again_after(source: sources_pb2.Source, status: int) -> None:
    """503 for those that drop a 4xx, 429 for those that know it, and what the configuration says before both."""
    assert Limits([source], 0, lambda: 0.0).status(source.source) == status


def test_clients_are_remembered_boundedly() -> None:
    """However many addresses ask, memory does not grow, and each has its own minute."""
    limits = Limits([], 2, lambda: 0.0)
    assert [limits.client("a") is None for _ in range(3)] == [True, True, False]
    for number in range(CLIENTS_MAX + 10):
        assert limits.client(str(number)) is None
    assert limits.client("a") is None


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("2001:db8:0:1::1", "2001:db8:0:1:ffff::2", True),
        ("2001:db8:0:1::1", "2001:db8:0:2::1", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
        ("fe80::1%eth0", "fe80::2%eth0", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("", "no address", False),
    ],
)
def test_a_client_is_who_was_given_the_addresses(first: str, second: str, *, same: bool) -> None:
    """A /64 of IPv6 is one client's: it has no minute for each address of it."""
    limits = Limits([], 1, lambda: 0.0)
    assert limits.client(first) is None
    assert (limits.client(second) is not None) is same


async def test_a_source_above_its_quota_is_told_to_come_again(tmp_path: Path) -> None:
    """503 or 429 with Retry-After; the others go on, and what proves nothing uses no quota up."""
    async with running(write_config(tmp_path, QUOTAS), MemoryIngest()) as bridge:
        for _ in range(5):
            assert (await bridge.post(BODY, headers={"Authorization": "Bearer wrong"})).status_code == 401
        codes = [(await bridge.post(BODY)).status_code for _ in range(4)]
        assert codes == [202, 202, 202, 503]
        told = [await bridge.post(b'{"id": "1", "status": "down"}', "/v1/webhooks/open", {}) for _ in range(2)]
        assert [one.status_code for one in told] == [202, 429]
        assert told[1].headers["retry-after"] == "1"
        assert (await bridge.post(BODY, "/v1/webhooks/patient")).status_code == 202


async def test_a_client_above_its_limit_is_told_to_come_again(tmp_path: Path) -> None:
    """All sources together, unknown ones and bad secrets included; the health of the bridge is shown all the same."""
    async with running(write_config(tmp_path), MemoryIngest(), per_minute=3) as bridge:
        codes = [
            (await bridge.post(BODY)).status_code,
            (await bridge.post(BODY, "/v1/webhooks/nobody")).status_code,
            (await bridge.post(BODY, headers={})).status_code,
        ]
        assert codes == [202, 404, 401]
        last = await bridge.post(BODY, headers=BEARER)
        assert (last.status_code, last.headers["retry-after"]) == (503, "20")
        assert (await bridge.post(BODY, "/v1/webhooks/nobody")).status_code == 429
        forged = {"X-Forwarded-For": "192.0.2.9", "Forwarded": "for=192.0.2.9", "X-Real-IP": "192.0.2.9"}
        assert (await bridge.post(BODY, headers=BEARER | forged)).status_code == 503
        assert (await bridge.http.get(f"{bridge.url}/metrics")).status_code == 429
        assert (await bridge.http.get(f"{bridge.url}/healthz")).status_code == 200


def waiting(source: str, size: int = 10) -> Waiting:
    """Return a delivery that waits."""
    return Waiting(pb.Delivery(source=source, body=b"x" * size), asyncio.get_running_loop().create_future())


async def test_sources_take_turns() -> None:
    """One of each source, whoever has more waiting."""
    queue = FairQueue(100, 10_000)
    for source in ("loud", "loud", "loud", "quiet", "other", "quiet"):
        queue.put(waiting(source))
    order = [queue.take().delivery.source for _ in range(len(queue))]
    assert order == ["loud", "quiet", "other", "loud", "quiet", "loud"]
    assert (len(queue), queue.bytes, queue.first()) == (0, 0, None)


@pytest.mark.parametrize(("items", "size"), [(4, 10), (1000, 250)])
async def test_who_waits_with_most_gives_way(items: int, size: int) -> None:
    """A full queue takes from a quiet source, and the newest of the loudest is sent away; that one gets no more."""
    queue = FairQueue(items, 1000)
    loud = [waiting("loud", size) for _ in range(4)]
    for one in loud:
        queue.put(one)
    with pytest.raises(FullError):
        queue.put(waiting("loud", size))
    queue.put(waiting("quiet", size))
    assert [one.answer.done() for one in loud] == [False, False, False, True]
    assert isinstance(loud[3].answer.exception(), FullError)
    queue.put(waiting("quiet", size))
    with pytest.raises(FullError):
        queue.put(waiting("quiet", size))
    assert (len(queue), queue.bytes) == (4, 4 * size)


async def test_a_quiet_source_does_not_wait_behind_a_loud_one() -> None:
    """With ingest away and the queue full of one source, another's delivery goes with the next call."""
    ingest = MemoryIngest()
    ingest.gate.clear()
    batches = Batches(ingest, 1000, 64 << 20)
    loud = [asyncio.create_task(batches.submit(delivery(BODY, "generic"))) for _ in range(1200)]
    await eventually(lambda: _some(loud))
    quiet = asyncio.create_task(batches.submit(delivery(BODY, "alertmanager", str(uuid.uuid4()))))
    await asyncio.wait([quiet, *loud], timeout=0.01)
    ingest.gate.set()
    await asyncio.gather(quiet, *loud, return_exceptions=True)
    order = [one.delivery.source for one in ingest.entries]
    assert order.index("alertmanager") < 3 * 128
    refused = sum(isinstance(one.exception(), FullError) for one in loud)
    assert len(order) == 1201 - refused


async def _some(tasks: list["asyncio.Task[pb.DeliveryResult]"]) -> bool:
    return any(one.done() for one in tasks)


class HeldIngest(MemoryIngest):
    """Tells which sources came with each call, before it is held back."""

    def __init__(self) -> None:
        super().__init__()
        self.gate.clear()
        self.calls: list[tuple[set[str], int]] = []

    async def SubmitSignals(self, request: pb.SubmitSignalsRequest, *, timeout: float) -> pb.SubmitSignalsResponse:  # noqa: ASYNC109, N802  as the stub has it
        """Note the call."""
        self.calls.append(
            ({one.source for one in request.deliveries}, sum(len(one.body) for one in request.deliveries))
        )
        return await super().SubmitSignals(request, timeout=timeout)


async def test_who_has_nothing_on_the_way_waits_for_nobody() -> None:
    """While every call of a loud source is held back, another source's delivery goes at once, its second one waits."""
    ingest = HeldIngest()
    batches = Batches(ingest, 1000, 64 << 20)
    sent = [asyncio.create_task(batches.submit(delivery(BODY, "generic"))) for _ in range(500)]
    await eventually(lambda: _calls(ingest, 2))
    for _ in range(2):
        sent.append(asyncio.create_task(batches.submit(delivery(BODY, "alertmanager"))))
        await eventually(lambda: _calls(ingest, 3))
    assert [one for one, _ in ingest.calls] == [{"generic"}, {"generic"}, {"alertmanager"}]
    ingest.gate.set()
    await asyncio.gather(*sent)
    assert len(ingest.entries) == 502


async def test_a_call_carries_no_more_bodies_than_are_parsed_soon() -> None:
    """Large deliveries go in several calls, so that who comes next does not wait for all of them."""
    ingest = HeldIngest()
    batches = Batches(ingest, 1000, 64 << 20)
    large = notification(*[alert(pod=str(number)) for number in range(100)])
    sent = [asyncio.create_task(batches.submit(delivery(large, "generic"))) for _ in range(40)]
    await eventually(lambda: _calls(ingest, 2))
    ingest.gate.set()
    await asyncio.gather(*sent)
    assert max(size for _, size in ingest.calls) <= BODIES_MAX


class MeasuredIngest(MemoryIngest):
    """Knows how large its answers are."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    async def SubmitSignals(  # noqa: N802  the IDL's name
        self,
        request: pb.SubmitSignalsRequest,
        *,
        timeout: float,  # noqa: ASYNC109  the stub's name
    ) -> pb.SubmitSignalsResponse:
        """Answer as ever."""
        answer = await super().SubmitSignals(request, timeout=timeout)
        self.largest = max(self.largest, answer.ByteSize())
        return answer


@pytest.mark.parametrize("bad", [b"1", b"{}", b'{"labels":{}}'])
async def test_an_answer_is_never_too_large_to_arrive(bad: bytes) -> None:
    """What is wrong with each of 1000 alerts is more than the alerts themselves; nobody else suffers."""
    ingest = MeasuredIngest()
    batches = Batches(ingest, 1000, 64 << 20)
    body = b'{"alerts":[' + b",".join([b'{"labels":{"alertname":"x"}}'] + [bad] * 999) + b"]}"
    await asyncio.gather(*(batches.submit(delivery(body)) for _ in range(200)))
    assert ingest.largest < 4 << 20


async def _calls(ingest: HeldIngest, count: int) -> bool:
    return len(ingest.calls) >= count
