"""A new run, with everything frozen that must not change under it: template, incident, limits, place in its path."""

from opsmesh.agents.v1 import template_service_pb2 as templates
from services.agents.runs.contract import NewRun
from services.agents.runs.domain import Run, RunState, levels_below
from services.mesh import policy
from services.mesh.models.untrusted import Marks


def new_root(new: NewRun, template: templates.TemplateVersion) -> Run:
    """Return a run as the router or a person starts it; the servicer has checked template and targets."""
    content = template.template
    return Run(
        run_id=new.run_id,
        template_id=content.template_id,
        template_version=template.version,
        template=template.SerializeToString(deterministic=True),
        state=RunState.PENDING,
        incident_id=new.incident.incident_id,
        incident=new.incident.SerializeToString(),
        root_run_id=new.run_id,
        depth=1,
        levels=levels_below(content.max_depth, None),
        goal=new.goal,
        target_ids=tuple(sorted(new.target_ids)),
        requester=new.requester,
        marks=Marks().token,
        token_limit=content.token_budget,
        cost_limit_micros=content.cost_budget_micros,
        time_limit=policy.seconds(content.timeout_duration),
        decision_id=new.decision_id,
        identity_token=new.identity_token,
        execution_id=new.execution_id,
        execution_trace=new.execution_trace,
        traceparent=new.traceparent,
    )


def new_child(
    parent: Run, run_id: str, template: templates.TemplateVersion, targets: tuple[str, ...], goal: str
) -> Run:
    """Return a run that another one starts: within what its parent has left, for the same incident and person."""
    content = template.template
    own, left = content.cost_budget_micros, parent.cost_limit_micros - parent.cost_micros
    costs = [one for one in (own, left if parent.cost_limit_micros else 0) if one > 0]
    return Run(
        run_id=run_id,
        template_id=content.template_id,
        template_version=template.version,
        template=template.SerializeToString(deterministic=True),
        state=RunState.PENDING,
        incident_id=parent.incident_id,
        incident=parent.incident,
        root_run_id=parent.root_run_id,
        depth=parent.depth + 1,
        levels=levels_below(content.max_depth, parent),
        goal=goal,
        target_ids=tuple(sorted(targets)) or parent.target_ids,
        requester=parent.requester,
        marks=Marks().token,
        token_limit=max(1, min(content.token_budget, parent.token_limit - parent.token_count)),
        cost_limit_micros=min(costs) if costs else 0,
        time_limit=max(1.0, min(policy.seconds(content.timeout_duration), parent.time_limit - parent.worked)),
        decision_id=parent.decision_id,
        parent_run_id=parent.run_id,
        traceparent=parent.traceparent,
    )
