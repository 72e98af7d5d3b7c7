"""AuthorizeAction over the real chain: what is derived, what is refused, what is signed."""

import time
import uuid
from datetime import UTC, datetime

import grpc
import grpc.aio
import pytest
from google.protobuf import json_format

from opsmesh.guardrails.v1 import guardrails_service_pb2 as pb
from opsmesh.policy.v1 import policy_pb2
from opsmesh.type.v1 import error_reason_pb2
from services.gateway.domain import misfit
from services.gateway.grants import GrantReader, to_domain
from services.gateway.pipeline import propose
from services.mesh import policy
from services.mesh.errors import Refusal
from services.mesh.tools import find_tool
from tests.guardrails.world import (
    CHECKOUT,
    PAYMENTS,
    PRODUCTION,
    RESTART,
    Context,
    House,
    RestartRequest,
    failures,
    reason_of,
    restart,
    rule,
)

SENT_AGAIN = b"\x12\x11svc:demo/payments"
AUTHORIZE = "opsmesh.guardrails.v1.GuardrailsService/AuthorizeAction"
UNKNOWN = b"\xfa\x01\x03abc"


async def test_a_grant_says_what_the_bytes_say(home: House) -> None:
    """A grant carries target, environment, region, fence, precondition, version and digest, and its signature holds."""
    version = await home.publish()
    context = await home.ready()
    request = restart()
    answer = await home.authorize(request, context)
    assert answer.judgement.verdict == pb.VERDICT_ALLOW
    assert failures(answer) == {}
    assert [check.name for check in answer.judgement.checks] == ["syntax", "safety", "policy", "sanity"]
    grant = home.opened(answer.grant)
    assert grant.method == RESTART
    assert grant.caller == "service/automation"
    assert grant.request_id == request.request_id
    assert (grant.target_id, grant.environment, grant.region) == (CHECKOUT, "demo", "local")
    assert grant.fence == 1
    assert dict(grant.precondition) == {"process_id": "41", "state": "STATE_RUNNING"}
    assert (grant.policy_set_version, grant.kill_epoch) == (version, 0)
    assert grant.risk == policy_pb2.RISK_LOW
    assert (grant.incident_id, grant.execution_id) == (context.incident_id, context.execution_id)
    assert grant.request_digest == policy.digest(RESTART, RestartRequest.FromString(answer.request))
    assert grant.expire_time.seconds - grant.issue_time.seconds in {29, 30}
    assert len(answer.grant) < 6 * 1024


async def test_the_gateway_believes_a_grant(home: House) -> None:
    """The gateway's own reader and checks accept a grant for exactly these bytes, and for no others."""
    await home.publish()
    answer = await home.authorize(restart(), await home.ready())
    reader = GrantReader.load(home.world.pki / "grant.pub")
    grant = to_domain(reader.read(answer.grant, RESTART))
    tool, request = find_tool(RESTART), RestartRequest.FromString(answer.request)
    now = datetime.now(UTC)
    assert misfit(grant, propose(tool, request, "service/automation"), now) == ""
    request.reason = "another"
    assert misfit(grant, propose(tool, request, "service/automation"), now) == "it is for other bytes"


async def test_a_person_with_the_lock_needs_no_incident(home: House) -> None:
    """A person who holds the lock in their own name may act without an incident, in JSON and by the bare name."""
    await home.publish()
    await home.lock(name="operator")
    request = json_format.MessageToJson(restart())
    answer = await home.authorize(request, method=RESTART, name="operator")
    assert answer.judgement.verdict == pb.VERDICT_ALLOW, failures(answer)
    assert home.opened(answer.grant).caller == "human/operator"


async def test_without_a_policy_set_everything_is_denied(home: House) -> None:
    """Before the first publish every action is denied with NO_POLICY_SET."""
    answer = await home.authorize(restart(), name="operator")
    assert answer.judgement.verdict == pb.VERDICT_DENY
    assert failures(answer)["policy"] == "NO_POLICY_SET"
    assert not answer.grant


async def test_what_no_rule_matches_is_denied(home: House) -> None:
    """A policy set whose rules do not match denies."""
    await home.publish(rule("production", "ALLOW", environments=["production"]))
    answer = await home.authorize(restart(), await home.ready())
    assert failures(answer) == {"policy": "POLICY_DENIED"}
    assert answer.judgement.policy_rule_id == ""


async def test_observe_mints_nothing(home: House) -> None:
    """OBSERVE passes all checks and carries no grant."""
    await home.publish(rule("all", "ALLOW", environments=["demo"]), rule("see", "OBSERVE", access=["ACCESS_WRITE"]))
    answer = await home.authorize(restart(), await home.ready())
    assert answer.judgement.verdict == pb.VERDICT_OBSERVE
    assert answer.judgement.policy_rule_id == "see"
    assert not answer.grant
    assert failures(answer) == {}


async def test_the_inventory_raises_the_risk(home: House) -> None:
    """An entry's min_risk makes a LOW tool HIGH, and the judgement says why."""
    await home.publish()
    answer = await home.authorize(restart(PRODUCTION), await home.ready(PRODUCTION))
    assert answer.judgement.risk == policy_pb2.RISK_HIGH
    assert PRODUCTION in answer.judgement.risk_detail
    assert home.opened(answer.grant).environment == "production"


async def test_an_unknown_target_is_told_how_to_become_known(home: House) -> None:
    """TARGET_UNKNOWN carries the lines that add the target to the inventory."""
    await home.publish()
    answer = await home.authorize(restart("svc:staging/other"), name="operator")
    assert answer.judgement.reason == "TARGET_UNKNOWN"
    detail = next(check.detail for check in answer.judgement.checks if check.name == "safety")
    assert '  - target_id: "svc:staging/other"\n    kind: service\n    environment: staging' in detail


@pytest.mark.parametrize("who", ["another execution", "nobody"])
async def test_a_write_needs_its_own_lock(home: House, who: str) -> None:
    """Without the lock of this very execution a write is denied with LOCK_REQUIRED."""
    await home.publish()
    context = Context(incident_id=home.ingest.open(CHECKOUT), execution_id=str(uuid.uuid4()))
    if who == "another execution":
        await home.lock(execution_id=str(uuid.uuid4()))
    assert failures(await home.authorize(restart(), context)) == {"safety": "LOCK_REQUIRED"}


async def test_a_person_cannot_borrow_the_lock_of_an_execution(home: House) -> None:
    """A person who names somebody's execution gets neither its lock nor its name into the record."""
    await home.publish()
    context = await home.ready()
    context.on_behalf_of, context.rule_set_version = "human/approver", 9
    answer = await home.authorize(restart(), context, name="operator")
    assert failures(answer) == {"safety": "LOCK_REQUIRED"}
    event = next(one for one in await home.events(3) if one.action.endswith("AuthorizeAction"))
    assert (event.execution_id, event.on_behalf_of, event.rule_set_version) == ("", "", 0)


@pytest.mark.parametrize(
    ("targets", "state", "reason"),
    [
        ((PRODUCTION,), "STATE_RUNNING", "TARGET_NOT_OF_INCIDENT"),
        ((PAYMENTS,), "STATE_RUNNING", "TARGET_NOT_OF_INCIDENT"),
        ((CHECKOUT,), "STATE_RESOLVED", "INCIDENT_NOT_OPEN"),
        ((CHECKOUT,), "STATE_STALE", "INCIDENT_NOT_OPEN"),
    ],
)
async def test_a_service_acts_for_an_open_incident_of_its_target(
    home: House, targets: tuple[str, ...], state: str, reason: str
) -> None:
    """Another target's incident, and one that is over, allow nothing."""
    await home.publish()
    context = await home.ready()
    context.incident_id = home.ingest.open(*targets, state=state)
    assert failures(await home.authorize(restart(), context)) == {"sanity": reason}


async def test_a_service_needs_an_incident_that_exists(home: House) -> None:
    """No incident and an invented one allow a service nothing."""
    await home.publish()
    context = await home.ready()
    for incident_id in ("", str(uuid.uuid4())):
        context.incident_id = incident_id
        assert failures(await home.authorize(restart(), context)) == {"sanity": "INCIDENT_NOT_OPEN"}


async def test_what_a_target_depends_on_may_be_touched(home: House) -> None:
    """An incident of checkout allows an action on payments, which checkout depends on."""
    await home.publish()
    context = await home.ready(PAYMENTS)
    context.incident_id = home.ingest.open(CHECKOUT)
    answer = await home.authorize(restart(PAYMENTS), context)
    assert answer.judgement.verdict == pb.VERDICT_ALLOW, failures(answer)


async def test_an_unknown_field_is_refused(home: House) -> None:
    """A field this version does not know fails the syntax check."""
    await home.publish()
    answer = await home.authorize(restart().SerializeToString() + UNKNOWN, await home.ready())
    assert answer.judgement.verdict == pb.VERDICT_DENY
    assert failures(answer)["syntax"] == "UNKNOWN_FIELD"
    answer = await home.authorize('{"request_id": "x", "force": true}', name="operator")
    assert failures(answer)["syntax"] == "UNKNOWN_FIELD"


@pytest.mark.parametrize(
    "payload",
    [b"\xff\xff\xff", b"", '{"request_id": 1}', "[" * 100_000, "{", "null", b"\x0a\x03abc\x12\x01-"],
    ids=["garbage", "empty", "wrong type", "deep", "truncated", "null", "bounds"],
)
async def test_what_cannot_be_read_is_an_answer(home: House, payload: bytes | str) -> None:
    """Malformed bytes and JSON are a failed syntax check in an answer, never an error or a grant."""
    await home.publish()
    answer = await home.authorize(payload, name="operator")
    assert answer.judgement.verdict == pb.VERDICT_DENY
    assert failures(answer)["syntax"] == "INVALID_ARGUMENT"
    assert not answer.grant


async def test_unknown_tools_and_reads_get_no_grant(home: House) -> None:
    """A method that is no tool, and one that only reads, fail the syntax check."""
    await home.publish()
    answer = await home.authorize(b"", method="opsmesh.tools.workload.v1.WorkloadToolService/Explode", name="operator")
    assert failures(answer)["syntax"] == "TOOL_UNKNOWN"
    reading = RESTART.replace("RestartWorkload", "GetWorkload")
    answer = await home.authorize(b"\x0a\x11svc:demo/checkout", method=reading, name="operator")
    assert failures(answer)["syntax"] == "INVALID_ARGUMENT"


async def test_a_field_sent_twice_retargets_nothing(home: House) -> None:
    """Of a target sent twice the last one counts for everything: lock, incident, grant and the bytes to send."""
    await home.publish()
    doubled = restart().SerializeToString() + SENT_AGAIN
    answer = await home.authorize(doubled, await home.ready())
    assert answer.judgement.target_id == PAYMENTS
    assert failures(answer)["safety"] == "LOCK_REQUIRED"
    context = await home.ready(PAYMENTS)
    answer = await home.authorize(doubled, context)
    assert RestartRequest.FromString(answer.request).target_id == PAYMENTS
    assert answer.request != doubled
    assert home.opened(answer.grant).request_digest == policy.digest(RESTART, RestartRequest.FromString(doubled))


async def test_an_oversized_request_is_refused(home: House) -> None:
    """More than a mebibyte of request is refused before it is looked at."""
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await home.authorize(b"\0" * (1024 * 1024 + 1), name="operator")
    assert reason_of(raised.value) == "INVALID_ARGUMENT"


async def test_a_grant_stays_small(home: House) -> None:
    """The longest values that the bounds allow still make a grant of less than 6 KiB."""
    await home.publish()
    context = await home.ready()
    context.decision_id, context.step_id, context.on_behalf_of = str(uuid.uuid4()), "s" * 63, "human/" + "n" * 122
    request = restart()
    request.reason = "ü" * 512
    answer = await home.authorize(request, context)
    assert 0 < len(answer.grant) < 6 * 1024


async def test_a_peer_that_is_away_is_no_lasting_answer(home: House) -> None:
    """While only the gateway's or ingest's absence stands in the way, the call is refused as UNAVAILABLE, ungranted."""
    await home.publish()
    context = await home.ready()
    away = Refusal(error_reason_pb2.ERROR_REASON_BACKEND_UNAVAILABLE, target=CHECKOUT, detail="no answer")
    for fake in (home.gateway, home.ingest):
        fake.refusal = away
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await home.authorize(restart(), context)
        assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
        assert reason_of(raised.value) == "BACKEND_UNAVAILABLE"
        fake.refusal = None
        context.incident_id = home.ingest.open(CHECKOUT)
    home.gateway.refusal = away
    assert failures(await home.authorize(restart("svc:x/y"), context))["safety"] == "TARGET_UNKNOWN"


async def test_a_precondition_that_cannot_be_read_is_denied(home: House) -> None:
    """A final refusal of the precondition read fails the safety check with that reason."""
    await home.publish()
    context = await home.ready()
    home.gateway.refusal = Refusal(error_reason_pb2.ERROR_REASON_NOT_FOUND, resource="workload", id=CHECKOUT)
    assert failures(await home.authorize(restart(), context)) == {"safety": "NOT_FOUND"}


async def test_incidents_are_remembered_briefly(home: House) -> None:
    """Several steps in a row ask ingest once."""
    await home.publish()
    context = await home.ready()
    for _ in range(3):
        await home.authorize(restart(), context)
    assert home.ingest.reads == 1


async def test_every_judgement_is_on_record(home: House) -> None:
    """Allowed, observed and denied actions each leave one event with target, digest and reason."""
    await home.publish(rule("all", "ALLOW", environments=["demo"]))
    context = await home.ready()
    request = restart()
    await home.authorize(request, context)
    await home.authorize(restart(PRODUCTION), name="operator")
    await home.publish(rule("see", "OBSERVE"))
    await home.authorize(restart(), context)
    events = [
        one for one in await home.events(7) if one.action == "opsmesh.guardrails.v1.GuardrailsService/AuthorizeAction"
    ]
    by_outcome = {one.outcome: one for one in events}
    assert len(by_outcome) == len(events) == 3
    allowed = next(one for one in events if one.request_id == request.request_id)
    assert allowed.details["tool"] == RESTART
    assert allowed.request_digest == policy.digest(RESTART, request).hex()
    assert (allowed.target, allowed.environment, allowed.region) == (CHECKOUT, "demo", "local")
    assert {one.reason for one in events} == {"", "LOCK_REQUIRED"}


async def test_a_preview_needs_no_lock_and_changes_nothing(home: House) -> None:
    """PreviewAction says for another caller what would be said, without lock, grant, approval or record."""
    await home.publish(rule("ask", "REQUIRE_APPROVAL"))
    request = pb.PreviewActionRequest(
        method=RESTART,
        request_json=json_format.MessageToJson(restart()),
        context=Context(incident_id=home.ingest.open(CHECKOUT)),
        caller="service/automation",
    )
    answer = await home.guardrails("operator").PreviewAction(request)
    assert answer.judgement.verdict == pb.VERDICT_REQUIRE_APPROVAL, failures(answer)
    assert await home.fetch("SELECT approval_id FROM guardrails.approvals") == []
    request.caller = "service/router"
    answer = await home.guardrails("operator").PreviewAction(request)
    assert failures(answer) == {"policy": "PERMISSION_DENIED"}


async def test_authorising_is_quick(home: House) -> None:
    """An authorisation, with its reads over mTLS and its durable record, takes milliseconds."""
    await home.publish()
    context = await home.ready()
    times = []
    for _ in range(60):
        started = time.perf_counter()
        await home.authorize(restart(), context)
        times.append(time.perf_counter() - started)
    # One process plays all three services here and the machine is shared: the number is printed, the quickest counts.
    print(f"AuthorizeAction p50 {sorted(times)[30] * 1000:.1f} ms")  # noqa: T201  read by people
    assert min(times) < 0.1
