"""`opsmesh kill` and the second half of `opsmesh status`: stopping is one line, and what waits is seen."""

import json
import uuid
from pathlib import Path

from opsmesh.gateway.v1 import effect_service_pb2 as gateway
from opsmesh.guardrails.v1 import kill_switch_service_pb2 as kills
from opsmesh.guardrails.v1 import target_lock_service_pb2 as locks
from opsmesh.ingest.v1 import ingest_service_pb2 as ingest
from tests.cli import fakes, guarded_fakes
from tests.cli.mesh import Done, Mesh, run


async def test_everything_is_stopped_by_one_line(mesh: Mesh) -> None:
    """`kill engage --all` asks nothing back and says how fast it was acknowledged."""
    done = await mesh.run("kill", "engage", "--all", "--reason", "something is odd", "--as", "approver")
    assert done.code == 0
    (kill,) = mesh.kill_switch.engaged
    assert kill.scope.everything
    assert (kill.reason, kill.engager) == ("something is odd", "human/approver")
    assert f"everything is stopped: kill {kill.kill_id}, acknowledged after " in done.out
    assert " ms, on disk" in done.out


async def test_every_scope_has_its_option(mesh: Mesh) -> None:
    """Each scope of the IDL is an option; a tool may be named by its bare RPC name."""
    one = str(uuid.UUID(int=1))
    options = {
        "--environment": ("environment", "production", "production"),
        "--target": ("target_id", "svc:demo/checkout", "svc:demo/checkout"),
        "--tool": ("tool", "RestartWorkload", guarded_fakes.RESTART),
        "--playbook": ("playbook_id", "restart-workload", "restart-workload"),
        "--execution": ("execution_id", one, one),
        "--run": ("run_id", one, one),
    }
    assert len(options) + 1 == len(kills.KillScope.DESCRIPTOR.fields)
    for option, (field, value, expected) in options.items():
        done = await mesh.run("kill", "engage", option, value, "--reason", "odd", "--json")
        assert done.answer["scope"] == {field: expected}


async def test_a_kill_without_a_scope_or_with_two_is_none(mesh: Mesh) -> None:
    """Exactly one scope is taken, and a reason; the mistake names them."""
    for words in ([], ["--all", "--environment", "demo"], ["--target", "a", "--tool", "RestartWorkload"]):
        done = await mesh.run("kill", "engage", *words, "--reason", "odd")
        assert (done.code, "--playbook" in done.err) == (2, True)
    assert (await mesh.run("kill", "engage", "--all")).code == 2
    assert mesh.kill_switch.engaged == []


async def test_only_guardrails_is_needed_to_stop(mesh: Mesh, tmp_path: Path) -> None:
    """With every other service gone a kill is engaged; with guardrails gone the answer says what that means."""
    endpoints = json.loads((mesh.state / "endpoints.json").read_text())
    alone = {name: port if name == "guardrails" else "127.0.0.1:1" for name, port in endpoints["services"].items()}
    (tmp_path / "endpoints.json").write_text(json.dumps(endpoints | {"services": alone}))
    assert (await run("kill", "engage", "--all", "--reason", "odd", "--state", str(tmp_path))).code == 0
    gone = alone | {"guardrails": "127.0.0.1:1"}
    (tmp_path / "endpoints.json").write_text(json.dumps(endpoints | {"services": gone}))
    done = await run("kill", "engage", "--all", "--reason", "so odd", "--state", str(tmp_path))
    assert done.code == 3
    assert "without a lease nothing new starts within 2 s" in done.err
    assert f"NEXT: opsmesh kill engage --all --reason 'so odd' --state {tmp_path}" in done.err


async def test_a_scope_that_nothing_bears_is_stopped_with_a_warning(mesh: Mesh) -> None:
    """A typo stops nothing: the command says so, and engages all the same, for a stop is never refused."""
    typo = await mesh.run("kill", "engage", "--environment", "prodution", "--reason", "odd")
    assert (typo.code, len(mesh.kill_switch.engaged)) == (0, 1)
    assert "WARNING: nothing in the inventory is environment prodution" in typo.out
    known = await mesh.run("kill", "engage", "--target", "svc:production/checkout", "--reason", "odd")
    assert known.code == 0
    assert "WARNING" not in known.out


async def test_everything_is_released_by_two_people(mesh: Mesh) -> None:
    """The first release leaves it RELEASE_PENDING and names the next step; another person's ends it."""
    await mesh.run("kill", "engage", "--all", "--reason", "odd")
    kill_id = mesh.kill_switch.engaged[0].kill_id
    first = await mesh.run("kill", "release", kill_id)
    assert first.code == 0
    assert "RELEASE_PENDING: 1 of 2 people released it; the kill holds" in first.out
    assert f"opsmesh kill release {kill_id} --state {mesh.state} --as NAME" in first.out
    second = await mesh.run("kill", "release", kill_id, "--as", "approver", "--reason", "found it", "--json")
    assert second.answer["state"] == "STATE_RELEASED"
    assert (await mesh.run("kill", "status", "--json")).answer["kills"] == []
    assert len((await mesh.run("kill", "status", "--all", "--json")).answer["kills"]) == 1


async def test_status_tells_who_has_not_stopped_first(mesh: Mesh) -> None:
    """`kill status` counts and lists the stops, what goes on before what has stopped."""
    await mesh.run("kill", "engage", "--environment", "demo", "--reason", "odd")
    stops = mesh.kill_switch.engaged[0].stops
    for number in range(30):
        stops.add(kind=kills.Stop.KIND_EXECUTION, subject=f"execution-{number}", state=kills.Stop.STATE_STOPPED)
    stops.add(kind=kills.Stop.KIND_EXECUTION, subject="deaf", state=kills.Stop.STATE_UNSTOPPED, reporter="automation")
    stops.add(state=kills.Stop.STATE_NOT_REPORTED, reporter="service/agents")
    done = await mesh.run("kill", "status")
    assert "1 UNSTOPPED, 1 NOT_REPORTED, 30 STOPPED" in done.out
    assert done.out.index("deaf") < done.out.index("execution-0")
    assert "and 12 more: opsmesh kill status --json" in done.out


async def test_observed_executions_are_listed_and_reported(mesh: Mesh) -> None:
    """`executions list --observed` asks for that state, `executions report` for a span of time."""
    assert (await mesh.run("executions", "list", "--observed")).code == 0
    assert len(mesh.automation.states) == 1
    done = await mesh.run("executions", "report", "--since", "12h")
    assert "checkout-down" in done.out
    assert "RestartWorkload" in done.out
    assert "12" in done.out
    assert (await mesh.run("executions", "report", "--json")).answer["rows"][0]["execution_count"] == "12"
    assert mesh.automation.spans == [12 * 3600, 7 * 86400]
    assert (await mesh.run("executions", "report", "--since", "yesterday")).code == 2


def fill(mesh: Mesh) -> None:
    """Let something of every kind wait."""
    mesh.approvals.asked.append(guarded_fakes.approval(1))
    held = fakes.incident(4)
    held.state, held.state_detail, held.age_seconds = ingest.Incident.STATE_HELD, "kill of everything", 61
    mesh.ingest.incidents += [held, fakes.incident(5)]
    scope = kills.KillScope(everything=True)
    stop = kills.Stop(state=kills.Stop.STATE_NOT_REPORTED, reporter="service/agents")
    mesh.kill_switch.engaged.append(kills.Kill(kill_id="k", scope=scope, releasers_needed=2, stops=[stop]))
    mesh.kill_switch.engaged[0].engage_time.GetCurrentTime()
    mesh.guardrails.held.append(locks.TargetLock(target_id="svc:demo/quiet", holder="execution-1", fence=1))
    waiter = locks.LockWaiter(holder="human/operator", rank=locks.LockWaiter.RANK_PERSON)
    waiter.wait_time.GetCurrentTime()
    mesh.guardrails.held.append(locks.TargetLock(target_id="svc:demo/busy", holder="execution-2", waiters=[waiter]))
    unknown = gateway.Effect(method=guarded_fakes.RESTART, request_id="r", state=gateway.Effect.STATE_UNKNOWN)
    mesh.effects.effects += [unknown, gateway.Effect(method=guarded_fakes.RESTART, request_id="s")]


async def test_status_shows_what_waits_for_whom(mesh: Mesh) -> None:
    """`status` lists what waits for people, models, kills and locks, and nothing that does not."""
    fill(mesh)
    answer = (await mesh.run("status", "--json")).answer
    waiting = answer["waiting"]
    assert {part: len(rows) for part, rows in waiting.items()} == {
        "approvals": 1,
        "incidents": 1,
        "runs": 0,
        "kills": 1,
        "locks": 1,
        "effects": 1,
    }
    (approval,) = waiting["approvals"]
    assert approval["waits_for"].startswith("approved by 0 of 2 people, each of these groups")
    assert approval["waits_for"].endswith("; not service/automation, human/operator")
    assert approval["since"] < approval["until"]
    assert waiting["incidents"][0]["state"] == "HELD"
    assert waiting["incidents"][0]["age"] == "1m 1s"
    assert waiting["kills"][0]["stops"] == "1 NOT_REPORTED"
    assert waiting["locks"][0]["waiting"] == "1: PERSON human/operator"
    assert waiting["effects"][0]["request"] == "r"
    said = (await mesh.run("status")).out
    for words in ("approvals that wait for people", "in 4m", "kills in force", "HELD", "locks that others wait for"):
        assert words in said


async def test_status_says_which_part_is_missing(mesh: Mesh, tmp_path: Path) -> None:
    """With a service down, its part is named and the others are shown."""
    fill(mesh)
    endpoints = json.loads((mesh.state / "endpoints.json").read_text())
    endpoints["services"]["ingest"] = "127.0.0.1:1"
    (tmp_path / "endpoints.json").write_text(json.dumps(endpoints))
    done: Done = await run("status", "--json", "--state", str(tmp_path))
    assert done.code == 1
    assert done.answer["missing"] == [{"part": "incidents", "service": "ingest", "why": "UNAVAILABLE"}]
    assert len(done.answer["waiting"]["approvals"]) == 1
    said = await run("status", "--state", str(tmp_path))
    assert "missing: incidents that wait, for ingest says UNAVAILABLE" in said.out


async def test_status_is_bounded(mesh: Mesh) -> None:
    """However much waits, a part has at most 20 rows and says that there is more."""
    mesh.approvals.asked += [guarded_fakes.approval(number) for number in range(30)]
    answer = (await mesh.run("status", "--json")).answer
    assert len(answer["waiting"]["approvals"]) == 20
    assert answer["truncated"] == ["approvals"]
