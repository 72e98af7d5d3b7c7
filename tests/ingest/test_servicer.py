"""IngestService over real mTLS, on the real stores."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from opsmesh.audit.v1 import audit_service_pb2
from opsmesh.ingest.v1 import ingest_service_pb2 as pb
from opsmesh.ingest.v1 import ingest_service_pb2_grpc, signal_pb2
from services.ingest.main import parsers_of
from services.ingest.servicer import IngestServicer
from services.mesh.client import refusal_of
from services.mesh.errors import BootError
from services.mesh.writes import Writes
from tests.ingest.house import ROOT, House, alert, delivery, entry, notification
from tests.mesh.world import World


class NoAudit:
    """Audit as far as an outbox needs it: it keeps what it is given."""

    def __init__(self) -> None:
        self.events: list[audit_service_pb2.AuditEvent] = []

    async def AppendEvents(  # noqa: N802  the IDL's name
        self, request: audit_service_pb2.AppendEventsRequest, **_: Any
    ) -> audit_service_pb2.AppendEventsResponse:
        """Keep the events."""
        self.events += request.events
        return audit_service_pb2.AppendEventsResponse()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Give certificates for every service and person."""
    return World(tmp_path_factory.mktemp("world"))


class Served:
    """A running ingest; `stub` calls it as somebody."""

    def __init__(self, world: World, server: Any, house: House) -> None:
        self.world, self.server, self.house = world, server, house
        self.woken = asyncio.Event()

    @asynccontextmanager
    async def stub(self, name: str = "operator") -> AsyncIterator[Any]:
        """Connect as a service or person."""
        async with self.world.channel(self.server, name) as channel:
            yield ingest_service_pb2_grpc.IngestServiceStub(channel)


@pytest.fixture
async def served(world: World, house: House) -> AsyncIterator[Served]:
    """Give an ingest that serves."""
    made = Served(world, None, house)
    writes = Writes(house.pool, "ingest", NoAudit())
    servicer = IngestServicer(house.appender, house.store, writes, parsers_of(ROOT / "deploy"), made.woken.set)
    add = ingest_service_pb2_grpc.add_IngestServiceServicer_to_server
    async with world.serving("ingest", [(add, servicer)]) as server:
        made.server = server
        yield made


async def test_accepted_means_in_the_stream(served: Served) -> None:
    """Each delivery is answered by itself: accepted, malformed and unknown; the first two are on disk."""
    deliveries = [delivery(notification(alert("a"), alert("b"))), delivery(b"rubbish"), delivery(b"{}", "nobody")]
    async with served.stub("bridge") as stub:
        response = await stub.SubmitSignals(pb.SubmitSignalsRequest(deliveries=deliveries))
    states = [pb.DeliveryResult.State.Name(one.state) for one in response.results]
    assert states == ["STATE_ACCEPTED", "STATE_MALFORMED", "STATE_UNKNOWN_SOURCE"]
    assert [len(one.signal_ids) for one in response.results] == [2, 1, 0]
    stored = await served.house.stored()
    assert [one.delivery for one in stored] == deliveries[:2]
    assert [len(one.signals) for one in stored] == [2, 0]
    assert stored[1].errors[0].description.startswith("the body is not JSON")


async def test_a_direct_callers_proof_is_its_certificate(served: Served) -> None:
    """Whatever a person claims about authenticity, the record says mTLS."""
    async with served.stub("operator") as stub:
        await stub.SubmitSignals(pb.SubmitSignalsRequest(deliveries=[delivery(notification(alert()))]))
    stored = await served.house.stored()
    assert stored[0].delivery.authenticity.method == signal_pb2.Authenticity.METHOD_MTLS


async def test_an_incident_is_shown_with_its_signals(served: Served) -> None:
    """GetIncident has the incident, its targets from the inventory and each signal with its disposition."""
    body = notification(alert())
    await served.house.take(entry(body))
    await served.house.take(entry(body))
    row = (await served.house.rows("SELECT incident_id FROM incidents"))[0]
    async with served.stub() as stub:
        answer = await stub.GetIncident(pb.GetIncidentRequest(incident_id=str(row["incident_id"])))
    incident = answer.incident
    assert (incident.title, incident.state, incident.firing) == (
        "CheckoutDown on checkout",
        pb.Incident.STATE_OPEN,
        True,
    )
    assert (incident.signal_count, incident.duplicate_count, incident.revision) == (2, 1, 1)
    assert (incident.severity, incident.status) == (
        signal_pb2.Signal.SEVERITY_CRITICAL,
        signal_pb2.Signal.STATUS_FIRING,
    )
    assert [(one.target_id, one.environment, one.in_inventory) for one in incident.targets] == [
        ("svc:demo/checkout", "demo", True)
    ]
    assert sorted(one.disposition for one in answer.signals) == [
        signal_pb2.SignalRecord.DISPOSITION_OPENED,
        signal_pb2.SignalRecord.DISPOSITION_DUPLICATE,
    ]


async def test_a_missing_incident_is_not_found(served: Served) -> None:
    """NOT_FOUND names what there is not."""
    async with served.stub() as stub:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.GetIncident(pb.GetIncidentRequest(incident_id=str(uuid.uuid4())))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_incidents_are_listed_in_pages_and_filtered(served: Served) -> None:
    """Newest first, every one once, whatever the page; filters by state, source and target hold."""
    for number in range(7):
        await served.house.take(entry(notification(alert(f"rule-{number}"))))
    await served.house.take(entry(json.dumps({"id": "x", "status": "down"}).encode(), "generic"))
    async with served.stub() as stub:
        found: list[str] = []
        request = pb.ListIncidentsRequest(page_size=3)
        while True:
            page = await stub.ListIncidents(request)
            found += [one.incident_id for one in page.incidents]
            if not page.next_page_token:
                break
            request.page_token = page.next_page_token
        assert len(found) == len(set(found)) == 8
        filtered = await stub.ListIncidents(pb.ListIncidentsRequest(source="generic"))
        assert [one.source for one in filtered.incidents] == ["generic"]
        filtered = await stub.ListIncidents(pb.ListIncidentsRequest(target_id="svc:demo/checkout"))
        assert len(filtered.incidents) == 7
        filtered = await stub.ListIncidents(pb.ListIncidentsRequest(states=[pb.Incident.STATE_RESOLVED]))
        assert not filtered.incidents


async def test_a_person_resolves_once(served: Served) -> None:
    """RESOLVED at once with who and why, a revision for the router, an audit event; again it changes nothing."""
    await served.house.take(entry(notification(alert())))
    row = (await served.house.rows("SELECT incident_id FROM incidents"))[0]
    request = pb.ResolveIncidentRequest(
        request_id=str(uuid.uuid4()), incident_id=str(row["incident_id"]), reason="restarted by hand"
    )
    async with served.stub() as stub:
        answer = await stub.ResolveIncident(request)
        assert answer.incident.state == pb.Incident.STATE_RESOLVED
        assert answer.incident.state_detail == "human/operator: restarted by hand"
        assert answer.incident.revision == 2
        assert (await stub.ResolveIncident(request)).incident == answer.incident
        request.request_id = str(uuid.uuid4())
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.ResolveIncident(request)
    refusal = refusal_of(caught.value)
    assert refusal
    assert (refusal.name, refusal.metadata["state"]) == ("CONFLICT", "RESOLVED")
    assert served.woken.is_set()
    state = (await served.house.rows("SELECT needs_decision, (SELECT count(*) FROM outbox) AS events FROM incidents"))[
        0
    ]
    assert tuple(state) == (True, 1)


async def test_dead_letters_are_listed_with_the_first_bytes(served: Served) -> None:
    """At most 64 KiB of the body are shown, and its whole size."""
    body = b'{"alerts": "' + b"x" * 100_000 + b'"}'
    await served.house.take(entry(body))
    async with served.stub() as stub:
        letter = (await stub.ListDeadLetters(pb.ListDeadLettersRequest())).dead_letters[0]
    assert (letter.body, letter.body_size, letter.source) == (body[:65536], len(body), "alertmanager")
    assert letter.reason == "alerts: must be a list of alerts"


async def test_a_full_stream_is_refused(served: Served) -> None:
    """Above its share of the store's memory INTAKE_FULL says so; below it signals are taken again."""
    tight = served.house.settings.model_copy(update={"shed_percent": 0})
    served.house.appender._settings = tight
    await served.house.appender.watch()
    async with served.stub("bridge") as stub:
        request = pb.SubmitSignalsRequest(deliveries=[delivery(notification(alert()))])
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.SubmitSignals(request)
        refusal = refusal_of(caught.value)
        assert refusal
        assert (refusal.name, refusal.retry_after) == ("INTAKE_FULL", 5.0)
        served.house.appender._settings = served.house.settings
        await served.house.appender.watch()
        assert (await stub.SubmitSignals(request)).results[0].state == pb.DeliveryResult.STATE_ACCEPTED


def test_an_unknown_parser_is_a_boot_error(tmp_path: Path) -> None:
    """The error names file, source and the parsers there are; so does one of a mapping."""
    (tmp_path / "sources.yaml").write_text("sources:\n  - source: pager\n    none: {}\n")
    with pytest.raises(BootError, match=r"sources\.yaml: source pager: .*no parser is called pager; .*alertmanager"):
        parsers_of(tmp_path)


def test_no_source_may_be_called_chat(tmp_path: Path) -> None:
    """A sender that could pretend to be a person is a boot error, whatever its parser."""
    (tmp_path / "sources.yaml").write_text("sources:\n  - source: chat\n    parser: generic\n    none: {}\n")
    with pytest.raises(BootError, match=r"source chat is the router's own\. NEXT: "):
        parsers_of(tmp_path)
