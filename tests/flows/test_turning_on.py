"""From observing to acting: the report, one playbook at a time, an unknown target, a freeze and a cap, as people type.

The policies that are published here are the shipped file with the lines taken in that its comments name.
"""

import json
import shutil
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml

from tests.cli.test_shipped_policies import SHIPPED, WRITES, uncommented, without
from tests.flows.payloads import alertmanager, now
from tests.flows.people import asked, typed
from tests.flows.world import SPARE, Incident, World

OBSERVED = "svc:observed/checkout"
FORGOTTEN = "svc:demo/till-1"


@pytest.fixture
async def config(world: World, tmp_path: Path) -> AsyncIterator[Path]:
    """Give a copy of the mesh's configuration to publish from; in the end the mesh's own is published again."""
    copy = tmp_path / "config"
    shutil.copytree(world.mesh.config, copy)
    yield copy
    assert (await typed(world, "policies", "publish")).returncode == 0


async def publish(world: World, config: Path, policies: str = "") -> None:
    """Publish policies (as they are, when none are given) and inventory of a folder."""
    if policies:
        # the world's own caps on notices: the stories before this one have sent more than the shipped sixty
        (config / "policies" / "demo.yaml").write_text(policies.replace("per_hour: 60", "per_hour: 2000"))
    done = await typed(world, "policies", "publish", "--config", str(config))
    assert done.returncode == 0, done.stderr


def turned_on(text: str) -> str:
    """Return TEXT with what it says of `production` said of the environment of this story."""
    return text.replace("environments: [production]", "environments: [observed]")


async def fired(world: World) -> str:
    """Break the observed workload and post its alert; return the incident."""
    await world.break_down(SPARE)
    _, incident_id = await world.recorded(await world.accepted("alertmanager", alertmanager(now(), env="observed")))
    return incident_id


async def restart(world: World, target: str) -> tuple[int, str]:
    """Restart a target by hand; return the exit code and what was said."""
    done = await typed(world, "tools", "call", "RestartWorkload", f"target_id={target}", "reason=by hand")
    return done.returncode, " ".join((done.stdout + done.stderr).split())


async def test_one_playbook_is_turned_on_after_it_was_observed(world: World, config: Path) -> None:
    """As shipped it is OBSERVED and in the report, by rule and playbook; with the lines taken in, the next one acts."""
    starts = world.workloads[SPARE].start_count()
    await publish(world, config, SHIPPED.read_text())
    incident_id = await fired(world)
    await world.reaches(incident_id, Incident.STATE_OBSERVED)
    execution_id = (await world.decisions(incident_id))[0].execution_id
    listed = (await asked(world, "executions", "list", "--observed"))["executions"]
    assert execution_id in [one["execution_id"] for one in listed]
    rows = (await asked(world, "executions", "report", "--since", "1h"))["rows"]
    (row,) = [one for one in rows if one["environment"] == "observed" and one["tool"].endswith("/RestartWorkload")]
    assert (row["rule_id"], row["playbook_id"], row["targets"]) == ("checkout-down", "restart-workload", [OBSERVED])
    assert row["last_execution_id"] == execution_id

    text = SHIPPED.read_text().replace("# except_playbooks:", "except_playbooks:")
    await publish(world, config, turned_on(uncommented(text, *WRITES)))
    await world.reaches(await fired(world), Incident.STATE_RESOLVED)
    assert world.workloads[SPARE].start_count() == starts + 1
    code, said = await restart(world, OBSERVED)
    assert code == 1
    assert "OBSERVE: policy only observes" in said
    assert world.workloads[SPARE].start_count() == starts + 1


async def test_a_freeze_and_a_cap_say_what_stands_in_the_way(world: World, config: Path) -> None:
    """In a change window the rule's own words and the window are the reason; past a cap, the cap and its number."""
    day = datetime.now(UTC).date()
    text = turned_on(uncommented(without(SHIPPED.read_text(), "observe-writes"), *WRITES, "production-freeze"))
    text = uncommented(text, "change_windows")
    for word, moved in (("2026-12-19", day - timedelta(days=1)), ("2027-01-03", day + timedelta(days=1))):
        text = text.replace(word, str(moved))
    await publish(world, config, text)
    code, said = await restart(world, OBSERVED)
    assert code == 1
    assert "Nothing changes in production during the freeze" in said
    assert "in change window year-end-freeze" in said

    text = uncommented(without(SHIPPED.read_text(), "observe-writes"), *WRITES, "effect_caps")
    used = await world.value(
        "SELECT count(*) FROM guardrails.effects_ledger "
        "WHERE target_id = $1 AND reserve_time > now() - interval '1 hour'",
        OBSERVED,
    )
    await publish(world, config, turned_on(text).replace("effects_per_hour: 6\n", f"effects_per_hour: {used + 1}\n"))
    assert (await restart(world, OBSERVED))[0] == 0
    code, said = await restart(world, OBSERVED)
    assert code == 1
    assert f"the cap of {used + 1} an hour for target {OBSERVED} (cap production-targets) is used up" in said


async def test_an_unknown_target_is_refused_with_the_lines_to_add(world: World, config: Path) -> None:
    """The lines of the refusal, pasted as they are and published, let the same command through."""
    inventory = config / "inventory.yaml"
    known = yaml.safe_load(inventory.read_text())
    left = "".join(f"\n  - {json.dumps(one)}" for one in known["entries"] if one["target_id"] != FORGOTTEN)
    inventory.write_text(f"entries:{left}")
    await publish(world, config)
    call = ("tools", "call", "RestartWorkload", f"target_id={FORGOTTEN}", "reason=by hand")
    done = await typed(world, *call)
    assert done.returncode == 1
    words, _, lines = done.stderr.partition("like this: ")
    assert "TARGET_UNKNOWN" in words
    inventory.write_text(inventory.read_text() + lines)
    await publish(world, config)
    done = await typed(world, *call)
    assert done.returncode == 0, done.stderr
