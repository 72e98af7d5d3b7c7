"""Record the histories that test_replay replays: `python -m tests.automation.record`, after each intended change.

Files that exist stay as they are as long as executions of that time may still run: they must replay under new code,
too. A scene that changes gets a new name.
"""

import asyncio
import re
import tempfile
from pathlib import Path
from typing import Final

from temporalio.client import Client

from opsmesh.guardrails.v1 import approval_service_pb2
from opsmesh.guardrails.v1 import guardrails_service_pb2 as guardrails
from opsmesh.type.v1 import error_reason_pb2
from services.mesh.errors import Refusal
from tests.automation.fakes import Hold
from tests.automation.playbooks import ALL
from tests.automation.world import Mesh, running_mesh
from tests.stores import running_postgres, running_temporal

HISTORIES: Final = Path(__file__).with_name("histories")
# Who recorded it says something about a machine, nothing about a workflow.
IDENTITY: Final = re.compile(r"\b\d+@[\w.-]+")


async def scenes(mesh: Mesh) -> dict[str, str]:
    """Run one execution of each kind and return their ids by name."""
    found = {"repaired": (await mesh.run("restart-workload")).execution_id}
    mesh.gateway.healthy = False
    mesh.gateway.health = [False, False]
    found["undone"] = (await mesh.run("undone")).execution_id
    mesh.guardrails.verdicts["RestartWorkload"] = [guardrails.VERDICT_OBSERVE]
    mesh.gateway.healthy = False
    found["observed"] = (await mesh.run("restart-workload")).execution_id
    mesh.gateway.turns["RestartWorkload"] = [
        "fail",
        Refusal(error_reason_pb2.ERROR_REASON_LEASE_STALE, retry_after=0.1, age="3 s"),
    ]
    found["obstacles"] = (await mesh.run("tried")).execution_id
    mesh.guardrails.verdicts["RestartWorkload"] = [guardrails.VERDICT_REQUIRE_APPROVAL]
    waiting = await mesh.start("tried")
    step = (await mesh.reached(waiting, frozenset({"AWAITING_APPROVAL"}))).steps[0]
    mesh.guardrails.change(step.approval_id, approval_service_pb2.Approval.STATE_EXPIRED)
    found["expired"] = (await mesh.reached(waiting)).execution_id
    found |= await answered(mesh)
    hold = Hold()
    mesh.gateway.healthy = False
    mesh.gateway.turns["RestartWorkload"] = [hold]
    held = await mesh.start("restart-workload")
    await hold.began.wait()
    await mesh.cancel(held)
    hold.go.set()
    found["cancelled"] = (await mesh.reached(held)).execution_id
    return found


async def answered(mesh: Mesh) -> dict[str, str]:
    """Run what people answer, amend and kill, and what drifts meanwhile."""
    found = {}
    for scene in ("approved", "rejected", "amended", "drifted", "killed"):
        mesh.gateway.healthy = False
        mesh.guardrails.drifts = int(scene == "drifted")
        mesh.guardrails.verdicts["RestartWorkload"] = [guardrails.VERDICT_REQUIRE_APPROVAL]
        waiting = await mesh.reached(await mesh.start("restart-workload"), frozenset({"AWAITING_APPROVAL"}))
        (approval_id,) = [step.approval_id for step in waiting.steps if step.approval_id]
        if scene == "amended":
            request = mesh.guardrails.bytes[-1]
            state = approval_service_pb2.Approval.STATE_AMENDED
            approval_id = mesh.guardrails.replace(approval_id, state, request).approval_id
        if scene == "killed":
            kill_id = mesh.guardrails.engage(everything=True)
            await mesh.reached(waiting.execution_id)
            mesh.guardrails.release(kill_id)
        else:
            mesh.guardrails.vote(approval_id, yes=scene != "rejected", comment="recorded")
        if scene == "drifted":
            await mesh.until(lambda: not mesh.guardrails.drifts)
            mesh.guardrails.vote(list(mesh.guardrails.approvals)[-1], yes=True)
        found[scene] = (await mesh.reached(waiting.execution_id)).execution_id
    return found


async def main() -> None:
    """Record everything."""
    with tempfile.TemporaryDirectory(prefix="opsmesh-record-") as name:
        folder = Path(name)
        async with running_postgres(folder) as database, running_temporal(folder) as temporal:
            async with running_mesh(folder, database, temporal) as mesh:
                await mesh.publish("restart-workload")
                for playbook in ALL:
                    await mesh.publish(playbook)
                recorded = await scenes(mesh)
            client = await Client.connect(temporal.address)
            for scene, execution_id in recorded.items():
                file = HISTORIES / f"{scene}.json"
                if not file.exists():
                    history = await client.get_workflow_handle(execution_id).fetch_history()
                    file.write_text(IDENTITY.sub("recorder", history.to_json()) + "\n")


if __name__ == "__main__":
    asyncio.run(main())
