"""Rows as the messages that callers see."""

from datetime import datetime

from google.protobuf import duration_pb2, timestamp_pb2

from opsmesh.agents.v1 import agent_service_pb2 as pb
from opsmesh.agents.v1 import model_service_pb2 as models
from services.agents.runs.domain import Kind, Run, Step


def run_message(run: Run) -> pb.Run:
    """Return a run, with the steps that were read with it."""
    return pb.Run(
        run_id=run.run_id,
        template_id=run.template_id,
        template_version=run.template_version,
        state=pb.Run.State.Value(f"STATE_{run.state}"),
        incident_id=run.incident_id,
        decision_id=run.decision_id,
        parent_run_id=run.parent_run_id,
        depth=run.depth,
        goal=run.goal,
        target_ids=run.target_ids,
        requester=run.requester,
        execution_id=run.execution_id,
        step_count=len(run.steps) or run.step_count,
        token_count=run.token_count,
        cost_micros=run.cost_micros,
        recorded=run.recorded,
        report=pb.RunReport.FromString(run.report) if run.report is not None else None,
        health_proved=run.health_proved,
        reason=run.reason,
        detail=run.detail,
        approval_id=run.approval_id,
        kill_id=run.kill_id,
        cancel_requested=run.cancel_requested,
        create_time=_stamp(run.create_time),
        end_time=_stamp(run.end_time),
        steps=[step_message(one) for one in run.steps],
    )


def step_message(step: Step) -> pb.RunStep:
    """Return a step."""
    made = pb.RunStep(
        number=step.number,
        kind=pb.RunStep.Kind.Value(f"KIND_{step.kind}"),
        state=pb.RunStep.State.Value(f"STATE_{step.state}"),
        tool=step.tool,
        arguments_json=step.arguments_json,
        result_digest=step.result_digest,
        result=step.result,
        reason=step.reason,
        detail=step.detail,
        verdict=step.verdict,
        approval_id=step.approval_id,
        child_run_id=step.child_run_id,
        start_time=_stamp(step.start_time),
        end_time=_stamp(step.end_time),
    )
    if step.kind is Kind.MODEL:
        made.prompt_digest, made.model, made.recorded = step.prompt_digest, step.model, step.recorded
        made.cost_micros = step.cost_micros
        made.usage.CopyFrom(
            models.Usage(input_tokens=step.input_tokens, output_tokens=step.output_tokens, estimated=step.estimated)
        )
        latency = duration_pb2.Duration()
        latency.FromNanoseconds(int(step.latency_seconds * 1e9))
        made.latency_duration.CopyFrom(latency)
        made.text = step.result
        made.result = ""
    return made


def _stamp(time: datetime | None) -> timestamp_pb2.Timestamp | None:
    """Return a time as a Timestamp, None where there is none."""
    if time is None:
        return None
    made = timestamp_pb2.Timestamp()
    made.FromDatetime(time)
    return made
