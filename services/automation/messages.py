"""Rows as the messages that callers see."""

from datetime import datetime

from google.protobuf.timestamp_pb2 import Timestamp

from opsmesh.automation.v1 import automation_service_pb2 as pb
from opsmesh.automation.v1 import playbook_service_pb2
from opsmesh.config.v1 import playbooks_pb2
from services.automation.observed import Observed
from services.automation.store import ExecutionRow, PlaybookRow, StepRow


def stamp(time: datetime | None) -> Timestamp | None:
    """Return a time as a Timestamp, None where there is none."""
    if time is None:
        return None
    made = Timestamp()
    made.FromDatetime(time)
    return made


def execution_message(row: ExecutionRow) -> pb.Execution:
    """Return an execution with its steps."""
    return pb.Execution(
        execution_id=row.execution_id,
        playbook_id=row.playbook_id,
        playbook_version=row.playbook_version,
        state=pb.Execution.State.Value(f"STATE_{row.state}"),
        steps=[step_message(step) for step in row.steps],
        incident_id=row.incident_id,
        decision_id=row.decision_id,
        rule_set_version=row.rule_set_version,
        requester=row.requester,
        health_proved=row.health_proved,
        detail=row.detail,
        cancel_requested=row.cancel_requested,
        create_time=stamp(row.create_time),
        end_time=stamp(row.end_time),
        rule_id=row.rule_id,
        kill_id=row.kill_id,
        unstopped=row.unstopped,
    )


def step_message(row: StepRow) -> pb.StepRecord:
    """Return one step."""
    return pb.StepRecord(
        step_id=row.step_id,
        state=pb.StepRecord.State.Value(f"STATE_{row.state}"),
        tool=row.tool,
        attempt=row.attempt,
        request_id=row.request_id,
        target_id=row.target_id,
        reason=row.reason,
        detail=row.detail,
        approval_id=row.approval_id,
        start_time=stamp(row.start_time),
        end_time=stamp(row.end_time),
        response_json=row.response_json,
        request_json=row.request_json,
    )


def playbook_message(row: PlaybookRow) -> playbook_service_pb2.PlaybookVersion:
    """Return a published version."""
    return playbook_service_pb2.PlaybookVersion(
        playbook_id=row.playbook_id,
        version=row.version,
        active=row.active,
        digest=row.digest,
        publisher=row.publisher,
        publish_time=stamp(row.publish_time),
        playbook=playbooks_pb2.Playbook.FromString(row.content),
    )


def observed_message(row: Observed) -> pb.ObservedRow:
    """Return one kind of step that policy only observed."""
    return pb.ObservedRow(
        rule_id=row.rule_id,
        playbook_id=row.playbook_id,
        tool=row.tool,
        environment=row.environment,
        execution_count=row.execution_count,
        target_count=row.target_count,
        targets=row.targets,
        first_time=stamp(row.first_time),
        last_time=stamp(row.last_time),
        last_execution_id=row.last_execution_id,
    )
