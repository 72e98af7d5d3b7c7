"""What would have happened, counted; and what is kept for how long."""

from datetime import timedelta

from google.protobuf import duration_pb2
from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest
from temporalio.client import Client

from opsmesh.automation.v1 import automation_service_pb2
from opsmesh.guardrails.v1 import guardrails_service_pb2 as guardrails
from tests.automation.fakes import TARGET
from tests.automation.world import Mesh, state_of

HISTORY_DAYS = 3


async def test_report(mesh: Mesh) -> None:
    """Observed steps are counted by rule, playbook, tool and environment; executions older than asked are left out."""
    for _ in range(2):
        mesh.guardrails.verdicts["RestartWorkload"] = [guardrails.VERDICT_OBSERVE]
        mesh.gateway.healthy = False
        last = await mesh.run("restart-workload")
        assert state_of(last) == "OBSERVED"
        assert last.rule_id == "restart-checkout"
    request = automation_service_pb2.ReportObservedRequest()
    report = await mesh.call("ReportObserved", request)
    rows = {row.tool.rpartition("/")[2]: row for row in report.rows}
    restart = rows["RestartWorkload"]
    assert (restart.rule_id, restart.playbook_id, restart.environment) == (
        "restart-checkout",
        "restart-workload",
        "demo",
    )
    assert (restart.execution_count, restart.target_count, list(restart.targets)) == (2, 1, [TARGET])
    assert restart.last_execution_id == last.execution_id
    assert restart.first_time.ToNanoseconds() < restart.last_time.ToNanoseconds()
    # The notice that would have gone out was previewed; it has no target.
    assert (rows["SendNotice"].execution_count, list(rows["SendNotice"].targets)) == (2, [])
    await mesh.execute("UPDATE automation.executions SET create_time = create_time - interval '2 days'")
    request.since_duration.CopyFrom(duration_pb2.Duration(seconds=86400))
    assert not (await mesh.call("ReportObserved", request)).rows


async def test_context(mesh: Mesh) -> None:
    """Guardrails hears which playbook asks, so that a kill of it can be matched."""
    await mesh.run("tried")
    assert mesh.guardrails.asked[0][1].playbook_id == "tried"


async def test_histories_are_kept_for_days(mesh: Mesh) -> None:
    """The engine is told how long it keeps the history of what has ended."""
    client = await Client.connect(mesh.temporal.address)
    answer = await client.workflow_service.describe_namespace(DescribeNamespaceRequest(namespace="default"))
    assert answer.config.workflow_execution_retention_ttl.ToTimedelta() == timedelta(days=HISTORY_DAYS)


async def test_old_executions_go(mesh: Mesh) -> None:
    """An execution that ended longer ago than the setting says is deleted with its steps, others stay."""
    old, young = await mesh.run("tried"), await mesh.run("tried")
    await mesh.execute(
        "UPDATE automation.executions SET end_time = now() - interval '366 days' WHERE execution_id = $1",
        old.execution_id,
    )
    await mesh.stop_process()
    await mesh.start_process()
    counts: list[int] = []

    async def count() -> None:
        statement = "SELECT count(*) FROM automation.steps WHERE execution_id = ANY($1::uuid[])"
        counts[:] = [await mesh.execute(statement, [old.execution_id, young.execution_id])]

    await mesh.until_true(count, lambda: counts == [1])
    assert state_of(await mesh.get(young.execution_id)) == "SUCCEEDED"
