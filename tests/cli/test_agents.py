"""`opsmesh agents|templates|models`, and what `status` says of them: the trace of a run, what answers, what waits."""

import uuid
from pathlib import Path

from opsmesh.agents.v1 import agent_service_pb2 as agents
from opsmesh.agents.v1 import model_service_pb2 as models
from tests.cli.agent_fakes import PROMPT, RESULT, run_with_everything
from tests.cli.mesh import Mesh
from tests.mesh.world import ROOT


async def test_show_prints_the_whole_trace(mesh: Mesh) -> None:
    """Every prompt hash, call, argument, result digest, verdict, token and cost is there, and who was not a model."""
    mesh.runs.runs.append(run_with_everything())
    done = await mesh.run("agents", "show", str(uuid.UUID(int=1)))
    assert done.code == 0, done.err
    flat = "".join(done.out.split())
    for said in (PROMPT, RESULT, "SearchLogs", '{"query":"pool"}', "RestartWorkload", "DENY", "POLICY_DENIED"):
        assert said in flat
    for words in ("1200 + 80", "0.012345", "1.5 s", "no model was asked", "step 2: the log says so", "[red]checkout"):
        assert words in done.out
    assert "\x1b" not in done.out
    shown = await mesh.run("agents", "show", str(uuid.UUID(int=1)), "--json")
    assert shown.answer["steps"][1]["result_digest"] == RESULT
    assert (shown.answer["state"], shown.answer["recorded"]) == ("STATE_SUCCEEDED", True)


async def test_runs_are_started_listed_and_cancelled(mesh: Mesh) -> None:
    """Each command asks for exactly what was typed; a run that is not there is refused with what next."""
    incident = str(uuid.uuid4())
    words = ("agents", "run", "take-action", "--incident", incident, "--goal", "restart it", "--target", "svc:demo/a")
    started = await mesh.run(*words, "--json")
    assert started.answer["run_id"] == str(uuid.UUID(int=9))
    (request,) = mesh.runs.started
    assert (request.template_id, request.incident_id, request.goal) == ("take-action", incident, "restart it")
    assert list(request.target_ids) == ["svc:demo/a"]
    mesh.runs.runs.append(run_with_everything())
    listed = await mesh.run("agents", "list", "--run-state", "succeeded", "--json")
    assert [one["run_id"] for one in listed.answer["runs"]] == [str(uuid.UUID(int=1))]
    assert (await mesh.run("agents", "list", "--run-state", "pending", "--json")).answer["runs"] == []
    assert (await mesh.run("agents", "list", "--run-state", "sleeping")).code == 2
    run_id = str(uuid.uuid4())
    assert (await mesh.run("agents", "cancel", run_id, "--reason", "enough")).code == 0
    assert [(one.run_id, one.reason) for one in mesh.runs.cancelled] == [(run_id, "enough")]
    gone = await mesh.run("agents", "show", run_id)
    assert gone.code == 1
    assert "NEXT:" in gone.err


async def test_templates_are_published_children_first(mesh: Mesh) -> None:
    """What ships is published in an order that agents takes; warnings are told, and a changed tool disables."""
    done = await mesh.run("templates", "publish", "--config", str(ROOT / "deploy"))
    assert done.code == 0, done.err
    assert mesh.templates.published == ["escalate", "take-action", "diagnose-repair"]
    assert "diagnose-repair: no model has the role agent" in done.err
    mesh.templates.active["escalate"].changed_tools.append("notify_SendNotice")
    listed = await mesh.run("templates", "list")
    assert "disabled, changed since it was published: notify_SendNotice" in listed.out
    answer = (await mesh.run("templates", "list", "--json")).answer
    assert {one["template_id"] for one in answer["templates"]} == {"escalate", "take-action", "diagnose-repair"}


async def test_only_one_template_is_published(mesh: Mesh, tmp_path: Path) -> None:
    """`--only` leaves the others alone; a folder without templates publishes none."""
    done = await mesh.run("templates", "publish", "--config", str(ROOT / "deploy"), "--only", "take-action")
    assert done.code == 0, done.err
    assert mesh.templates.published == ["take-action"]
    assert (await mesh.run("templates", "publish", "--config", str(tmp_path))).code == 0


async def test_models_say_what_they_are(mesh: Mesh) -> None:
    """Roles, breakers and budgets are listed; automation-only with its reason, a recording as what it is."""
    mesh.models.answer = models.ListModelsResponse(
        automation_only=True,
        automation_only_reason="every provider failed",
        models=[
            models.Model(role="agent", model="recorded", provider="recorded", recorded=True),
            models.Model(role="routing", model="a/b", provider="a", breaker_state=models.Model.BREAKER_STATE_OPEN),
        ],
        budgets=[models.Budget(scope=models.Budget.SCOPE_DAY, token_limit=500, tokens_left=20)],
    )
    done = await mesh.run("models", "list")
    assert done.code == 0, done.err
    for words in ("automation-only", "every provider failed", "from files, no model is asked", "OPEN", "500"):
        assert words in done.out
    assert (await mesh.run("models", "list", "--json")).answer["automation_only"] is True
    answer = (await mesh.run("status", "--json")).answer
    assert answer["models"] == [
        {"mode": "automation-only", "why": "every provider failed"},
        {"mode": "recorded", "why": "no model is asked for: agent; replies come from files"},
    ]
    assert "automation-only: every provider failed" in (await mesh.run("status")).out


async def test_status_shows_runs_that_wait(mesh: Mesh) -> None:
    """A run that waits for an approval is there, one that has ended is not."""
    waiting = agents.Run(
        run_id="r", template_id="take-action", state=agents.Run.STATE_AWAITING_APPROVAL, approval_id="a"
    )
    waiting.create_time.GetCurrentTime()
    mesh.runs.runs += [waiting, run_with_everything()]
    answer = (await mesh.run("status", "--json")).answer
    assert [(one["run"], one["waits_for"]) for one in answer["waiting"]["runs"]] == [("r", "approval a")]
    assert answer["models"] == []
