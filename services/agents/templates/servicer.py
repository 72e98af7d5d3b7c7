"""Proto in, proto out: templates are published and read; what changed since is found anew at every read."""
# ruff: noqa: N802  the names are those of the IDL

from typing import Any

from opsmesh.agents.v1 import template_service_pb2 as pb
from opsmesh.agents.v1 import template_service_pb2_grpc as rpc
from opsmesh.config.v1 import templates_pb2
from opsmesh.type.v1 import error_reason_pb2
from services.agents.domain import Models
from services.agents.templates.checking import changed_tools, check, digest_of, pins_of, warnings
from services.agents.templates.store import NewTemplate, TemplateRow, TemplateStore
from services.mesh.call import current
from services.mesh.errors import FieldViolation, Refusal
from services.mesh.paging import page_size, read_token, write_token
from services.mesh.postgres import Connection
from services.mesh.writes import Subject, Writes


class TemplateServicer(rpc.TemplateServiceServicer):
    """TemplateService; `models` says which roles there are."""

    def __init__(self, store: TemplateStore, writes: Writes, models: Models) -> None:
        self._store = store
        self._writes = writes
        self._models = models

    async def PublishTemplate(self, request: pb.PublishTemplateRequest, _context: Any) -> pb.PublishTemplateResponse:
        """Check a template against the IDL; unless only asked to, make it the active version and pin its tools."""
        template = request.template
        published = await self._store.published(template.child_templates)
        wrong = [FieldViolation(f"template.{one.field}", one.description) for one in check(template, published)]
        if wrong:
            raise Refusal(error_reason_pb2.ERROR_REASON_TEMPLATE_INVALID, violations=wrong)
        content, pins = template.SerializeToString(deterministic=True), pins_of(template)
        new = NewTemplate(template.template_id, digest_of(content, pins), content, pins, current().identity)
        limit = self._models.limits.incident
        said = warnings(template, self._models.roles, limit.tokens, limit.cost_micros)
        if request.validate_only:
            return pb.PublishTemplateResponse(template=await self._would_be(template, new), warnings=said)

        async def change(connection: Connection) -> pb.PublishTemplateResponse:
            row = await self._store.publish(connection, new)
            return pb.PublishTemplateResponse(template=template_message(row), warnings=said)

        subject = Subject(detail={"template_id": new.template_id, "digest": new.digest})
        return await self._writes.once(request, pb.PublishTemplateResponse, change, subject)

    async def _would_be(self, template: templates_pb2.AgentTemplate, new: NewTemplate) -> pb.TemplateVersion:
        """Return the version that publishing would make, or the active one of the same content."""
        row = await self._store.template(new.template_id)
        if row is not None and row.digest == new.digest:
            return template_message(row)
        version = row.version + 1 if row is not None else 1
        return pb.TemplateVersion(
            template_id=new.template_id,
            version=version,
            digest=new.digest,
            template=template,
            tool_digests=new.pins,
        )

    async def GetTemplate(self, request: pb.GetTemplateRequest, _context: Any) -> pb.GetTemplateResponse:
        """Return a version."""
        row = await self._store.template(request.template_id, request.version)
        if row is None:
            raise Refusal(error_reason_pb2.ERROR_REASON_NOT_FOUND, resource="template", id=request.template_id)
        return pb.GetTemplateResponse(template=template_message(row))

    async def ListTemplates(self, request: pb.ListTemplatesRequest, _context: Any) -> pb.ListTemplatesResponse:
        """Return the active versions."""
        size = page_size(request.page_size)
        (after,) = read_token(request, str) or ("",)
        rows = await self._store.templates(after, size + 1)
        token = write_token(request, rows[size - 1].template_id) if len(rows) > size else ""
        return pb.ListTemplatesResponse(templates=[template_message(row) for row in rows[:size]], next_page_token=token)


def template_message(row: TemplateRow) -> pb.TemplateVersion:
    """Return a version as callers see it, with what of its tools has changed since."""
    made = pb.TemplateVersion(
        template_id=row.template_id,
        version=row.version,
        active=row.active,
        digest=row.digest,
        publisher=row.publisher,
        template=templates_pb2.AgentTemplate.FromString(row.content),
        tool_digests=row.pins,
        changed_tools=changed_tools(row.pins),
    )
    made.publish_time.FromDatetime(row.publish_time)
    return made


def require_enabled(row: TemplateRow) -> None:
    """Refuse a template whose tools are not what they were when it was published: asked before every step."""
    if gone := changed_tools(row.pins):
        raise Refusal(
            error_reason_pb2.ERROR_REASON_TEMPLATE_DISABLED, template=row.template_id, tools=", ".join(gone)[:500]
        )
