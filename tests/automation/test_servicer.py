"""The RPCs as callers see them."""

import uuid

import pytest

from opsmesh.automation.v1 import automation_service_pb2, playbook_service_pb2
from opsmesh.config.v1 import playbooks_pb2
from services.mesh.errors import Refusal
from tests.automation.playbooks import TRIED
from tests.automation.world import Mesh


def version_of(title: str) -> playbooks_pb2.Playbook:
    """Return a playbook that differs by its title."""
    made = playbooks_pb2.Playbook()
    made.CopyFrom(TRIED)
    made.playbook_id, made.title = "versioned", title
    return made


async def test_versions(mesh: Mesh) -> None:
    """Every published change is a new version, older ones stay; the same content again is no new one."""
    first, second = await mesh.publish(version_of("one")), await mesh.publish(version_of("two"))
    assert (first.version, second.version) == (1, 2)
    assert (await mesh.publish(version_of("two"))).version == 2
    old = await mesh.call("GetPlaybook", playbook_service_pb2.GetPlaybookRequest(playbook_id="versioned", version=1))
    assert (old.playbook.playbook.title, old.playbook.active) == ("one", False)
    new = await mesh.call("GetPlaybook", playbook_service_pb2.GetPlaybookRequest(playbook_id="versioned"))
    assert (new.playbook.version, new.playbook.active, new.playbook.publisher) == (2, True, "human/operator")


async def test_validate_only(mesh: Mesh) -> None:
    """A playbook that is only validated is answered with its digest, and not stored."""
    wanted = version_of("three")
    wanted.playbook_id = "never"
    request = playbook_service_pb2.PublishPlaybookRequest(
        request_id=str(uuid.uuid4()), playbook=wanted, validate_only=True
    )
    answer = await mesh.call("PublishPlaybook", request)
    assert (answer.playbook.version, len(answer.playbook.digest)) == (1, 64)
    with pytest.raises(Refusal) as refused:
        await mesh.call("GetPlaybook", playbook_service_pb2.GetPlaybookRequest(playbook_id="never"))
    assert refused.value.name == "NOT_FOUND"


async def test_refused_publish(mesh: Mesh) -> None:
    """A wrong playbook is refused with the paths of its fields."""
    wrong = version_of("wrong")
    wrong.steps[0].tool = "Restart"
    with pytest.raises(Refusal) as refused:
        await mesh.publish(wrong)
    assert refused.value.name == "PLAYBOOK_INVALID"
    assert [one.field for one in refused.value.violations] == ["playbook.steps[0].tool"]


async def test_unknown_playbook(mesh: Mesh) -> None:
    """A playbook that nobody published is not started."""
    with pytest.raises(Refusal) as refused:
        await mesh.start("nobody-published")
    assert (refused.value.name, refused.value.metadata["resource"]) == ("NOT_FOUND", "playbook")


async def test_lists(mesh: Mesh) -> None:
    """Executions are listed newest first, page by page, by incident, playbook and state."""
    ended = [(await mesh.run("notify-person")).execution_id for _ in range(3)]
    state = automation_service_pb2.Execution.STATE_SUCCEEDED
    request = automation_service_pb2.ListExecutionsRequest(page_size=2, playbook_id="notify-person", states=[state])
    page = await mesh.call("ListExecutions", request)
    assert [one.execution_id for one in page.executions] == [ended[2], ended[1]]
    assert [step.step_id for step in page.executions[0].steps] == ["notify"]
    request.page_token = page.next_page_token
    page = await mesh.call("ListExecutions", request)
    assert page.executions[0].execution_id == ended[0]
    incident_id = page.executions[0].incident_id
    by_incident = automation_service_pb2.ListExecutionsRequest(incident_id=incident_id)
    assert [one.execution_id for one in (await mesh.call("ListExecutions", by_incident)).executions] == [ended[0]]
    listed = await mesh.call("ListPlaybooks", playbook_service_pb2.ListPlaybooksRequest())
    assert {"restart-workload", "notify-person", "health-report"} <= {one.playbook_id for one in listed.playbooks}


async def test_reader_sees_no_answers(mesh: Mesh) -> None:
    """The read-only role cannot read the raw answers of tools or the incident's snapshot."""
    for column, table in (("response", "steps"), ("incident", "executions")):
        allowed = await mesh.execute(
            "SELECT has_column_privilege('opsmesh_reader', $1, $2, 'SELECT')", f"automation.{table}", column
        )
        assert not allowed
