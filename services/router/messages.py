"""Between the IDL's messages and the domain."""

import uuid
from datetime import UTC, datetime, timedelta
from typing import Final

from google.protobuf.timestamp_pb2 import Timestamp

from opsmesh.agents.v1 import agent_service_pb2
from opsmesh.automation.v1 import automation_service_pb2
from opsmesh.config.v1 import rules_pb2
from opsmesh.ingest.v1 import ingest_service_pb2, signal_pb2
from opsmesh.router.v1 import decision_service_pb2, outcome_pb2, rule_service_pb2
from services.mesh.failures import sentence
from services.mesh.models import outcomes
from services.router import domain, rules
from services.router.held import Seen
from services.router.work import Execution, Run

QUESTION_MAX: Final = 500
NOTE_MAX: Final = 1000
NO_ID: Final = uuid.UUID(int=0)
SEVERITIES: Final = {
    signal_pb2.Signal.SEVERITY_CRITICAL: "critical",
    signal_pb2.Signal.SEVERITY_ERROR: "error",
    signal_pb2.Signal.SEVERITY_WARNING: "warning",
    signal_pb2.Signal.SEVERITY_INFO: "info",
}
OVER: Final = (ingest_service_pb2.Incident.STATE_RESOLVED, ingest_service_pb2.Incident.STATE_STALE)
# What says nothing about whether an alert goes on.
QUIET: Final = (
    signal_pb2.Signal.STATUS_UNSPECIFIED,
    signal_pb2.Signal.STATUS_RESOLVED,
    signal_pb2.Signal.STATUS_SUPPRESSED,
)


def facts_of(incident: ingest_service_pb2.Incident) -> dict[str, str]:
    """Return the fields that rules are about; a field of our own that is empty is absent, a label that is there is not.

    Target, environment and region are those of the first target in the inventory.
    """
    target = next((one for one in incident.targets if one.in_inventory), None)
    own = {
        "source": incident.source,
        "severity": SEVERITIES.get(incident.severity, "unknown"),
        "environment": target.environment if target else "",
        "region": target.region if target else "",
        "target": target.target_id if target else "",
        "title": incident.title,
        "rule": incident.rule_name,
    }
    facts = {name: value for name, value in own.items() if value}
    facts |= {f"labels.{name}": value for name, value in incident.labels.items()}
    return facts | {f"resource.{name}": value for name, value in incident.resource.items()}


def uuid_of(text: str) -> uuid.UUID | None:
    """Return the UUID that a text is, or None."""
    try:
        return uuid.UUID(text)
    except ValueError:
        return None


def snapshot_of(incident: ingest_service_pb2.Incident) -> domain.Snapshot:
    """Return what the router decides on; an incident without a proper id gets the nil one."""
    return domain.Snapshot(
        incident_id=uuid_of(incident.incident_id) or NO_ID,
        revision=incident.revision,
        facts=facts_of(incident),
        resolved=incident.state == ingest_service_pb2.Incident.STATE_RESOLVED,
        firing=incident.firing,
        readable=incident.status != signal_pb2.Signal.STATUS_UNSPECIFIED,
        open_time=_time_of(incident.open_time) if incident.HasField("open_time") else None,
        target_ids=tuple(one.target_id for one in incident.targets if one.in_inventory),
        correlation_key=incident.correlation_key,
        flapping=incident.flapping,
        why_over=incident.state_detail if incident.HasField("expire_time") and not incident.firing else "",
    )


def seen_of(answer: ingest_service_pb2.GetIncidentResponse) -> Seen:
    """Return what the start of a held decision depends on."""
    incident = answer.incident
    return Seen(
        revision=incident.revision,
        over=incident.state in OVER,
        firing=incident.firing,
        age=timedelta(seconds=incident.age_seconds),
        signal_time=max(
            (_time_of(one.record_time) for one in answer.signals if one.signal.status not in QUIET), default=None
        ),
        flapping=incident.flapping,
    )


def rules_of(rule_set: rules_pb2.RuleSet) -> list[domain.Rule]:
    """Return the rules of a message, in its order."""
    return [_rule_of(rule) for rule in rule_set.rules]


def _rule_of(rule: rules_pb2.Rule) -> domain.Rule:
    """Return one rule."""
    outcome, text = domain.Outcome.TRIGGER_AUTOMATION, ""
    if rule.HasField("ask_human"):
        outcome, text = domain.Outcome.ASK_HUMAN, rule.ask_human.question
    elif rule.HasField("respond"):
        outcome, text = domain.Outcome.RESPOND, rule.respond.text
    return domain.Rule(
        rule_id=rule.rule_id,
        priority=rule.priority,
        outcome=outcome,
        equals=dict(rule.match.equals),
        conditions=tuple(_condition_of(one) for one in rule.match.conditions),
        playbook_id=rule.trigger_automation.playbook_id,
        text=text,
        max_age=timedelta(seconds=rule.max_age_duration.seconds, microseconds=rule.max_age_duration.nanos // 1000)
        or domain.MAX_AGE,
        max_per_hour=rule.max_per_hour or domain.MAX_PER_HOUR,
    )


def _condition_of(condition: rules_pb2.Condition) -> domain.Condition:
    """Return one condition."""
    test = domain.Kind(condition.WhichOneof("test") or domain.Kind.EXISTS)
    if test is domain.Kind.EXISTS:
        return domain.Condition(condition.field, test, wanted=condition.exists)
    if test is domain.Kind.ONE_OF:
        return domain.Condition(condition.field, test, tuple(condition.one_of.values))
    return domain.Condition(condition.field, test, (getattr(condition, test.value),))


def failing_tests(file: rules_pb2.RuleFile) -> list[str]:
    """Run the examples of a rule file against its rules; one line for each that another rule answers than it says."""
    index = rules.Index(rules_of(rules_pb2.RuleSet(rules=file.rules)), version=1)
    failing = []
    for test in file.tests:
        explanation = index.explain(dict(test.incident))
        found = explanation.rule.rule_id if explanation.rule else ""
        if found != test.rule_id:
            why = dict(explanation.not_matched).get(test.rule_id, "")
            wanted = f"wanted {test.rule_id or 'no rule'}" + (f", but {why}" if why else "")
            failing.append(f"{test.name}: {found or 'no rule'} matches; {wanted}")
    return failing


def state_of(state: "decision_service_pb2.Decision.State.ValueType") -> domain.State | None:
    """Return a state to filter by; None for all."""
    if not state:
        return None
    return domain.State(decision_service_pb2.Decision.State.Name(state).removeprefix("STATE_"))


def decision_message(decision: domain.Decision) -> decision_service_pb2.Decision:
    """Return a stored decision as a message."""
    message = decision_service_pb2.Decision(
        decision_id=str(decision.decision_id),
        incident_id=str(decision.incident_id),
        revision=decision.revision,
        state=decision_service_pb2.Decision.State.Value(f"STATE_{decision.state}"),
        outcome=decision_service_pb2.Decision.Outcome.Value(f"OUTCOME_{decision.outcome}"),
        result=decision_service_pb2.Decision.Result.Value(f"RESULT_{decision.result}"),
        rule_id=decision.rule_id,
        rule_set_version=decision.rule_set_version,
        playbook_id=decision.playbook_id,
        reason=_reason(decision),
        held=decision.held,
        execution_id=decision.execution_id,
        notice_execution_id=decision.notice_execution_id,
        awaiting_approval=decision.awaiting_approval,
        create_time=_timestamp(decision.create_time),
        age_seconds=max(0, int(decision.age.total_seconds())),
        run_id=decision.run_id,
        template_id=decision.template_id,
        model_call_count=decision.model_call_count,
        recorded=decision.recorded,
        answerer=decision.answerer,
        conversation_id=decision.order.conversation_id,
        brake=decision_service_pb2.Decision.Brake.Value(f"BRAKE_{decision.brake}"),
    )
    if decision.close_time:
        message.close_time.CopyFrom(_timestamp(decision.close_time))
    if decision.model_outcome:
        message.model_outcome.ParseFromString(decision.model_outcome)
    if question := question_of(decision):
        message.question.CopyFrom(question)
    if decision.answer:
        message.answer.ParseFromString(decision.answer)
    return message


def _reason(decision: domain.Decision) -> str:
    """Return why, with what it waits for now."""
    waits = decision.held_words if decision.held else decision.parked_words if decision.parked else ""
    return domain.shorten(f"{decision.reason}; {waits}") if waits else decision.reason


def question_of(decision: domain.Decision) -> outcome_pb2.AskHuman | None:
    """Return the question that a decision puts to a person, if it does; a rule's is answered in a few words."""
    if decision.outcome is not domain.Outcome.ASK_HUMAN:
        return None
    if decision.question:
        return outcome_pb2.AskHuman.FromString(decision.question)
    return outcome_pb2.AskHuman(question=decision.reason[:QUESTION_MAX], text=outcome_pb2.FreeText())


def note_of(decision: domain.Decision) -> str:
    """Return what people are told: what is asked and how it is answered, or why they are needed.

    The command goes first: nothing that a model or a sender wrote comes before it, or cuts it off. It is the same
    however often a notice is tried, for a request_id belongs to one request: nothing that may still change is in it.
    """
    question = question_of(decision)
    if question is None:
        return sentence(f"See `opsmesh decisions show {decision.decision_id}`: {decision.reason}", NOTE_MAX)
    command = f"opsmesh decisions answer {decision.decision_id} TEXT"
    return sentence(f"Answer with `{command}`: {question.question} ({outcomes.wants(question)})", NOTE_MAX)


def preview_response(
    snapshot: domain.Snapshot, verdict: domain.Verdict, explanation: rules.Explanation
) -> decision_service_pb2.PreviewDecisionResponse:
    """Return what would be decided: without ids and times, with the rules that matched and did not."""
    others = list(explanation.not_matched)
    if explanation.rule and not verdict.rule_id:
        # Something came before the rules: the incident is over, or could not be read.
        others.insert(0, (explanation.rule.rule_id, verdict.reason))
    return decision_service_pb2.PreviewDecisionResponse(
        decision=decision_service_pb2.Decision(
            revision=snapshot.revision,
            state=decision_service_pb2.Decision.State.Value(f"STATE_{verdict.state}"),
            outcome=decision_service_pb2.Decision.Outcome.Value(f"OUTCOME_{verdict.outcome}"),
            result=decision_service_pb2.Decision.Result.Value(f"RESULT_{verdict.result}"),
            rule_id=verdict.rule_id,
            rule_set_version=verdict.rule_set_version,
            playbook_id=verdict.playbook_id,
            reason=verdict.reason,
            brake=decision_service_pb2.Decision.Brake.Value(f"BRAKE_{verdict.brake}"),
        ),
        matched=explanation.matched if verdict.rule_id else (),
        not_matched=[
            decision_service_pb2.NotMatched(rule_id=rule_id, reason=reason)
            for rule_id, reason in others[: rules.NOT_MATCHED_MAX]
        ],
    )


def rule_set_message(row: domain.RuleSetRow) -> rule_service_pb2.RuleSetVersion:
    """Return a published version as a message; with its rules when the row has them."""
    message = rule_service_pb2.RuleSetVersion(
        version=row.version,
        active=row.active,
        digest=row.digest,
        rule_count=row.rule_count,
        publisher=row.publisher,
    )
    if row.publish_time:
        message.publish_time.CopyFrom(_timestamp(row.publish_time))
    if row.content is not None:
        message.rule_set.ParseFromString(row.content)
    return message


def execution_of(execution: automation_service_pb2.Execution) -> Execution:
    """Return what the router needs to know of an execution."""
    word = automation_service_pb2.Execution.State.Name(execution.state).removeprefix("STATE_")
    return Execution(execution.execution_id, word, execution.health_proved, killed=bool(execution.kill_id))


def run_of(run: agent_service_pb2.Run) -> Run:
    """Return what the router needs to know of a run; its words come from us, not from its model."""
    word = agent_service_pb2.Run.State.Name(run.state).removeprefix("STATE_")
    words = f"{run.reason}: {run.detail}" if run.reason and run.detail else run.reason or run.detail
    outcome, said = run.report.outcome, agent_service_pb2.RunReport
    return Run(
        run.run_id,
        word,
        run.health_proved,
        killed=bool(run.kill_id),
        words=words,
        escalated=outcome == said.OUTCOME_ESCALATED,
        idle=outcome == said.OUTCOME_NOTHING_WRONG,
    )


def _timestamp(moment: datetime) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(moment)
    return stamp


def _time_of(stamp: Timestamp) -> datetime:
    return stamp.ToDatetime(tzinfo=UTC)
