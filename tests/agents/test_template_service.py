"""TemplateService before real PostgreSQL and mTLS: immutable versions, on record, disabled by a changed tool."""

import asyncio
import uuid
from collections.abc import AsyncIterator

import asyncpg
import grpc.aio
import pytest

from opsmesh.agents.v1 import template_service_pb2 as pb
from opsmesh.audit.v1 import audit_service_pb2 as audit_pb
from services.mesh.client import refusal_of
from tests.agents.api_house import Api, living, template
from tests.mesh.world import World
from tests.stores import Database


@pytest.fixture
async def api(mesh: World, postgres: Database) -> AsyncIterator[Api]:
    """Serve agents on a database of its own."""
    async with postgres.fresh() as database, living(mesh, database) as api:
        yield api


async def reason(call: object) -> str:
    """Return why a call is refused."""
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call  # type: ignore[misc]  # an awaitable call of gRPC
    refusal = refusal_of(raised.value)
    return refusal.name if refusal else raised.value.code().name


async def test_a_publish_is_a_version_on_record(api: Api) -> None:
    """Versions count from 1, the same content stays the same version, and audit has intent and outcome of each."""
    first = (await api.publish(template())).template
    assert (first.version, first.active, first.publisher) == (1, True, "human/operator")
    assert set(first.tool_digests) == {"workload_CheckHealth", "workload_GetWorkload"}
    assert (await api.publish(template())).template == first
    second = (await api.publish(template(constraints=["gently"]))).template
    assert (second.version, second.digest == first.digest) == (2, False)
    stub = await api.templates()
    old = (await stub.GetTemplate(pb.GetTemplateRequest(template_id="looker", version=1))).template
    assert (old.active, old.digest) == (False, first.digest)
    assert (await stub.GetTemplate(pb.GetTemplateRequest(template_id="looker"))).template == second
    events = [await asyncio.wait_for(api.audit.events.get(), 20) for _ in range(6)]
    phases = [one.phase for one in events]
    assert phases.count(audit_pb.AuditEvent.PHASE_INTENT) == 3
    outcomes = {one.outcome for one in events if one.phase == audit_pb.AuditEvent.PHASE_OUTCOME}
    assert outcomes == {audit_pb.AuditEvent.OUTCOME_SUCCEEDED}
    assert {one.details["template_id"] for one in events} == {"looker"}


async def test_the_same_request_is_answered_once(api: Api) -> None:
    """A repeated request_id gets the stored answer; with other content it is refused."""
    request_id = str(uuid.uuid4())
    answers = [await api.publish(template(), request_id=request_id) for _ in range(2)]
    assert answers[0] == answers[1]
    assert await reason(api.publish(template(constraints=["x"]), request_id=request_id)) == "REQUEST_ID_REUSED"
    assert len(await api.sql("SELECT version FROM agents.templates")) == 1


async def test_validate_only_changes_nothing(api: Api) -> None:
    """It says which version there would be, with its warnings, and publishes none."""
    answer = await api.publish(template(), validate_only=True)
    assert (answer.template.version, answer.template.active) == (1, False)
    assert answer.warnings == ["no model has the role agent (models.yaml has: none): its runs will wait"]
    stub = await api.templates()
    assert await reason(stub.GetTemplate(pb.GetTemplateRequest(template_id="looker"))) == "NOT_FOUND"
    published = (await api.publish(template())).template
    again = (await api.publish(template(), validate_only=True)).template
    assert (again.version, again.digest) == (published.version, published.digest)


async def test_mistakes_are_refused_with_their_fields(api: Api) -> None:
    """A template that names what is not there is refused, each mistake at its field; children come first."""
    parent = template("parent", child_templates=["looker"], max_depth=1)
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await api.publish(template(tools=["Nonsense"]))
    refusal = refusal_of(raised.value)
    assert refusal
    assert refusal.name == "TEMPLATE_INVALID"
    assert [one.field for one in refusal.violations] == ["template.tools[2]"]
    assert await reason(api.publish(parent)) == "TEMPLATE_INVALID"
    await api.publish(template())
    assert (await api.publish(parent)).template.version == 1


async def test_lists_have_pages(api: Api) -> None:
    """Active versions come by id, page by page."""
    for name in ("c", "a", "b"):
        await api.publish(template(name))
    await api.publish(template("a", constraints=["again"]))
    stub = await api.templates("router")
    first = await stub.ListTemplates(pb.ListTemplatesRequest(page_size=2))
    assert [(one.template_id, one.version) for one in first.templates] == [("a", 2), ("b", 1)]
    rest = await stub.ListTemplates(pb.ListTemplatesRequest(page_size=2, page_token=first.next_page_token))
    assert ([one.template_id for one in rest.templates], rest.next_page_token) == (["c"], "")


async def test_a_changed_tool_disables_until_the_next_publish(api: Api) -> None:
    """What was pinned is compared with the running IDL at every read; publishing again pins it anew."""
    await api.publish(template())
    await api.sql("UPDATE agents.templates SET pins[1] = repeat('0', 64)")
    stub = await api.templates()
    found = (await stub.GetTemplate(pb.GetTemplateRequest(template_id="looker"))).template
    assert list(found.changed_tools) == ["workload_CheckHealth"]
    assert (await stub.ListTemplates(pb.ListTemplatesRequest())).templates[0].changed_tools
    # The stored digest is of the pins as they were: what is published now is another version.
    await api.sql("UPDATE agents.templates SET digest = repeat('0', 64)")
    again = (await api.publish(template())).template
    assert (again.version, list(again.changed_tools)) == (2, [])


async def test_only_a_person_may_publish(api: Api) -> None:
    """Neither the router nor an approver: both may read."""
    for who in ("router", "approver"):
        stub = await api.templates(who)
        request = pb.PublishTemplateRequest(request_id=str(uuid.uuid4()), template=template())
        assert await reason(stub.PublishTemplate(request)) == "PERMISSION_DENIED"
        assert not (await stub.ListTemplates(pb.ListTemplatesRequest())).templates


async def test_a_version_cannot_be_rewritten(api: Api) -> None:
    """The service's own role may not change what is published, nor delete it."""
    await api.publish(template())
    for statement in ("UPDATE agents.templates SET content = ''", "DELETE FROM agents.templates"):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await api.sql(statement, role="opsmesh_agents")
