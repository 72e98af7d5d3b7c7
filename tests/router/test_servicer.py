"""DecisionService and RuleService through mTLS on a real PostgreSQL."""

import asyncio
import uuid
from datetime import UTC, datetime, timedelta

import grpc
import grpc.aio
import pytest

from opsmesh.audit.v1 import audit_service_pb2
from opsmesh.config.v1 import rules_pb2
from opsmesh.ingest.v1 import signal_pb2
from opsmesh.router.v1 import decision_service_pb2, decision_service_pb2_grpc, rule_service_pb2, rule_service_pb2_grpc
from opsmesh.type.v1 import error_reason_pb2
from services.local.waiting import until
from services.mesh.client import refusal_of
from tests.router.house import Decision, Incident, Router, Town, checkout_rules, incident, rule

Event = audit_service_pb2.AuditEvent


async def test_twenty_at_once_make_one_decision(router: Router, town: Town) -> None:
    """However many ask about one revision at once, there is one decision, one audit record and one execution."""
    await router.publish(checkout_rules())
    asked = incident()
    answers = await asyncio.gather(*[router.decide(asked) for _ in range(20)])
    (decision_id,) = {one.decision_id for (one,) in answers}
    assert await router.pool.fetchval("SELECT count(*) FROM decisions") == 1
    await router.until(decision_id, lambda one: one.execution_id)
    assert len(town.automation.of(decision_id, "restart-workload")) == 1

    async def probe() -> None:
        if not [one for one in town.audit.appended if one.decision_id == decision_id]:
            raise LookupError

    await until(probe, "the audit record", 60, LookupError)
    (record,) = [one for one in town.audit.appended if one.decision_id == decision_id]
    assert (record.phase, record.outcome) == (Event.PHASE_RECORD, Event.OUTCOME_SUCCEEDED)
    assert record.action == "opsmesh.router.v1.DecisionService/DecideIncident"
    assert (record.actor, record.target, record.environment) == ("service/ingest", "svc:demo/checkout", "demo")
    assert (record.incident_id, record.rule_set_version) == (asked.incident_id, 1)
    assert record.details["rule_id"] == "checkout-down"
    assert record.details["outcome"] == "TRIGGER_AUTOMATION"


async def test_a_batch_is_answered_in_order(router: Router) -> None:
    """Each incident of a batch gets its decision, in the order of the request, the known ones again."""
    await router.publish(checkout_rules(rule("Known", respond=rules_pb2.Respond(text="by design"))))
    asked = [incident(), incident(labels={"alertname": "Known"}), incident(labels={"alertname": "New"})]
    (first,) = await router.decide(asked[1])
    decisions = await router.decide(*asked)
    assert [one.incident_id for one in decisions] == [one.incident_id for one in asked]
    assert decisions[1].decision_id == first.decision_id
    assert [one.state for one in decisions] == [
        Decision.STATE_DECIDED,
        Decision.STATE_CLOSED,
        Decision.STATE_AWAITING_MODEL,
    ]
    assert (decisions[1].result, decisions[1].reason) == (Decision.RESULT_RESPONDED, "by design")
    assert decisions[0].rule_set_version == 1
    assert decisions[0].model_call_count == 0


async def test_without_rules_everything_waits(router: Router) -> None:
    """Before the first publish a decision waits and says what is missing."""
    (decision,) = await router.decide(incident())
    assert decision.state == Decision.STATE_AWAITING_MODEL
    assert "no rule set is published" in decision.reason
    assert decision.rule_set_version == 0


async def test_an_unreadable_status_is_never_matched(router: Router) -> None:
    """A signal whose status could not be read leaves the incident to a person."""
    await router.publish(checkout_rules())
    (decision,) = await router.decide(incident(status=signal_pb2.Signal.STATUS_UNSPECIFIED))
    assert (decision.state, decision.rule_id) == (Decision.STATE_AWAITING_MODEL, "")


async def test_a_resolve_supersedes_what_is_open(router: Router) -> None:
    """The revision without a firing alert is answered and closed, the open decision before it superseded."""
    (waiting,) = await router.decide(incident())
    (over,) = await router.decide(incident(2, waiting.incident_id, firing=False))
    assert (over.state, over.outcome, over.result) == (
        Decision.STATE_CLOSED,
        Decision.OUTCOME_RESPOND,
        Decision.RESULT_RESPONDED,
    )
    earlier = await router.decision(waiting.decision_id)
    assert (earlier.state, earlier.result) == (Decision.STATE_CLOSED, Decision.RESULT_SUPERSEDED)
    assert earlier.HasField("close_time")


async def test_a_person_who_resolves_ends_it(router: Router) -> None:
    """A resolved incident is answered even though its alerts fire."""
    await router.publish(checkout_rules())
    (decision,) = await router.decide(incident(state=Incident.STATE_RESOLVED))
    assert (decision.state, decision.result) == (Decision.STATE_CLOSED, Decision.RESULT_RESPONDED)


async def test_a_rule_starts_its_playbook_once_per_incident(router: Router) -> None:
    """The next revision is not matched by the rule that started a playbook before, but by another one."""
    again = rules_pb2.Rule(
        rule_id="second", priority=20, match=rules_pb2.RuleMatch(), ask_human=rules_pb2.AskHuman(question="and now?")
    )
    await router.publish(checkout_rules(again))
    (first,) = await router.decide(incident())
    (second,) = await router.decide(incident(2, first.incident_id))
    assert (first.rule_id, second.rule_id) == ("checkout-down", "second")
    assert (second.state, second.outcome) == (Decision.STATE_DECIDED, Decision.OUTCOME_ASK_HUMAN)
    answer = await router.preview(incident(2, first.incident_id))
    assert answer.decision.rule_id == "second"
    assert answer.not_matched[0].reason == "it started a playbook on this incident before"


async def test_an_old_incident_is_stale(router: Router) -> None:
    """Older than the rule's max_age: closed as STALE."""
    await router.publish(checkout_rules())
    old = incident()
    old.open_time.FromDatetime(datetime.now(UTC) - timedelta(hours=2))
    (decision,) = await router.decide(old)
    assert (decision.state, decision.result) == (Decision.STATE_CLOSED, Decision.RESULT_STALE)


async def test_what_is_no_incident_is_refused(router: Router) -> None:
    """An id that is no UUID, revision 0 and an incident given twice are named with their paths."""
    twice = incident()
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await router.decide(incident(incident_id="x"), incident(0), twice, twice)
    refusal = refusal_of(raised.value)
    assert refusal is not None
    assert [one.field for one in refusal.violations] == [
        "incidents[0].incident_id",
        "incidents[1].revision",
        "incidents[3].incident_id",
    ]


async def test_preview_says_why_and_does_nothing(router: Router) -> None:
    """A preview names what matched and why the others did not, and leaves no row."""
    await router.publish(checkout_rules(rule("Other")))
    answer = await router.preview(incident())
    assert (answer.decision.rule_id, answer.decision.decision_id) == ("checkout-down", "")
    assert list(answer.matched) == [
        'environment is "demo"',
        'labels.alertname is "CheckoutDown"',
        'title matches "(?i)DOWN$"',
    ]
    assert [(one.rule_id, one.reason) for one in answer.not_matched] == [
        ("other", 'labels.alertname is "CheckoutDown", not "Other"')
    ]
    assert await router.pool.fetchval("SELECT count(*) FROM decisions") == 0


async def test_decisions_are_listed_newest_first_by_pages(router: Router) -> None:
    """Pages go on where the last ended; filters apply."""
    await router.publish(checkout_rules())
    made = [(await router.decide(incident()))[0].decision_id for _ in range(5)]
    (other,) = await router.decide(incident(labels={"alertname": "New"}))
    stub = decision_service_pb2_grpc.DecisionServiceStub(router.operator)
    found: list[str] = []
    request = decision_service_pb2.ListDecisionsRequest(page_size=2, rule_id="checkout-down")
    for _ in range(3):
        answer = await stub.ListDecisions(request)
        found += [one.decision_id for one in answer.decisions]
        request.page_token = answer.next_page_token
    assert found == made[::-1]
    assert request.page_token == ""
    waiting = decision_service_pb2.ListDecisionsRequest(state=Decision.STATE_AWAITING_MODEL)
    assert [one.decision_id for one in (await stub.ListDecisions(waiting)).decisions] == [other.decision_id]
    batch = decision_service_pb2.BatchGetDecisionsRequest(decision_ids=[*made, str(uuid.uuid4())])
    assert len((await stub.BatchGetDecisions(batch)).decisions) == 5
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await router.decision(str(uuid.uuid4()))
    assert raised.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_bad_rule_set_is_refused_with_paths(router: Router) -> None:
    """Each mistake is named with its path; nothing is published."""
    bad = rule("b")
    bad.match.conditions.add(field="title", matches="(")
    unknown = rule("c")
    unknown.trigger_automation.playbook_id = "nowhere"
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await router.publish(rules_pb2.RuleSet(rules=[rule("a"), bad, unknown, rule("a")]))
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    refusal = refusal_of(raised.value)
    assert refusal is not None
    assert refusal.reason == error_reason_pb2.ERROR_REASON_RULE_SET_INVALID
    assert [one.field for one in refusal.violations] == [
        "rules[1].match.conditions[0].matches",
        "rules[2].trigger_automation.playbook_id",
        "rules[3].rule_id",
    ]
    assert await router.pool.fetchval("SELECT count(*) FROM rule_sets") == 0


async def test_versions_are_immutable_and_the_same_again_is_no_new_one(router: Router, town: Town) -> None:
    """A new content is a new version, the active content again is not; a repeated request gets its first answer."""
    request_id = str(uuid.uuid4())
    first = await router.publish(checkout_rules(), request_id)
    assert (first.version, first.active, first.rule_count) == (1, True, 1)
    assert first.publisher == "human/operator"
    assert not first.HasField("rule_set")
    same = await router.publish(checkout_rules())
    assert (same.version, same.digest) == (1, first.digest)
    would = await router.publish(checkout_rules(rule("Other")), validate_only=True)
    assert (would.version, would.active) == (2, False)
    assert (await router.publish(checkout_rules(), validate_only=True)).version == 1
    second = await router.publish(checkout_rules(rule("Other")))
    assert (second.version, router.book.index.version) == (2, 2)
    assert (await router.publish(checkout_rules(), request_id)).version == 1
    assert router.book.index.version == 2
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await router.publish(checkout_rules(rule("Third")), request_id)
    assert raised.value.code() is grpc.StatusCode.ALREADY_EXISTS

    stub = rule_service_pb2_grpc.RuleServiceStub(router.operator)
    old = (await stub.GetRuleSet(rule_service_pb2.GetRuleSetRequest(version=1))).rule_set
    assert (old.active, old.rule_set) == (False, checkout_rules())
    assert (await stub.GetRuleSet(rule_service_pb2.GetRuleSetRequest())).rule_set.version == 2
    page = await stub.ListRuleSets(rule_service_pb2.ListRuleSetsRequest(page_size=1))
    assert [(one.version, one.active) for one in page.rule_sets] == [(2, True)]
    rest = await stub.ListRuleSets(rule_service_pb2.ListRuleSetsRequest(page_size=1, page_token=page.next_page_token))
    assert [one.version for one in rest.rule_sets] == [1]
    assert rest.next_page_token == ""
    intents = [one for one in town.audit.appended if one.phase == Event.PHASE_INTENT]
    assert {one.action for one in intents} == {"opsmesh.router.v1.RuleService/PublishRuleSet"}
    for statement in ("UPDATE rule_sets SET digest = digest", "DELETE FROM rule_sets", "DELETE FROM decisions"):
        with pytest.raises(Exception, match="permission denied"):
            await router.pool.execute(statement)


async def test_nothing_is_published_without_audit(router: Router, town: Town) -> None:
    """No acknowledged intent, no publish; the rules stay what they were."""
    town.audit.down = True
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await router.publish(checkout_rules())
    refusal = refusal_of(raised.value)
    assert refusal is not None
    assert refusal.reason == error_reason_pb2.ERROR_REASON_AUDIT_UNAVAILABLE
    assert await router.pool.fetchval("SELECT count(*) FROM rule_sets") == 0
    (decision,) = await router.decide(incident())
    assert decision.state == Decision.STATE_AWAITING_MODEL


async def test_no_rule_set_yet_is_not_found(router: Router) -> None:
    """Asking for the active version before the first publish is told as NOT_FOUND."""
    stub = rule_service_pb2_grpc.RuleServiceStub(router.operator)
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await stub.GetRuleSet(rule_service_pb2.GetRuleSetRequest())
    assert raised.value.code() is grpc.StatusCode.NOT_FOUND


async def test_another_replica_follows_within_a_second(router: Router, town: Town) -> None:
    """What one replica publishes decides at the other one within a second."""
    async with town.router() as other:
        await router.publish(checkout_rules())

        async def probe() -> None:
            if other.book.index.version != 1:
                raise LookupError

        await until(probe, "the other replica", 1, LookupError)
        (decision,) = await other.decide(incident())
    assert decision.rule_id == "checkout-down"
