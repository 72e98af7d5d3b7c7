"""Tools for changes: ingest keeps what pipelines told; here it is bounded and shown."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Final

import grpc

from opsmesh.ingest.v1 import ingest_service_pb2, ingest_service_pb2_grpc, signal_pb2
from opsmesh.tools.change.v1 import change_tool_service_pb2 as pb
from opsmesh.tools.change.v1 import change_tool_service_pb2_grpc as rpc
from services.gateway.domain import plain
from services.mesh import paging

CHANGES: Final = 20
TITLE_MAX: Final = 1024
DESCRIPTION_MAX: Final = 2048
WORD_MAX: Final = 256
STATUS_MAX: Final = 128
URL_MAX: Final = 2048
KINDS: Final = {
    signal_pb2.Signal.KIND_DEPLOYMENT: pb.Change.KIND_DEPLOYMENT,
    signal_pb2.Signal.KIND_CONFIGURATION: pb.Change.KIND_CONFIGURATION,
}


class ChangeTools:
    """ChangeToolService on ingest."""

    service = pb.DESCRIPTOR.services_by_name["ChangeToolService"]
    add = staticmethod(rpc.add_ChangeToolServiceServicer_to_server)

    def __init__(self, ingest: grpc.aio.Channel) -> None:
        stub = ingest_service_pb2_grpc.IngestServiceStub(ingest)
        self._list: Callable[..., Awaitable[ingest_service_pb2.ListChangesResponse]] = stub.ListChanges

    async def list_changes(
        self, request: pb.ListChangesRequest, _precondition: Mapping[str, str]
    ) -> pb.ListChangesResponse:
        """List them."""
        asked = ingest_service_pb2.ListChangesRequest(
            target_id=request.target_id,
            page_size=paging.page_size(request.page_size, CHANGES),
            page_token=request.page_token,
        )
        if request.HasField("start_time"):
            asked.start_time.CopyFrom(request.start_time)
        if request.HasField("end_time"):
            asked.end_time.CopyFrom(request.end_time)
        answer = await self._list(asked)
        # Ingest's token fits ingest's filter, which is this one.
        changes = [to_proto(one) for one in answer.changes]
        return pb.ListChangesResponse(changes=changes, next_page_token=answer.next_page_token)


def to_proto(change: ingest_service_pb2.Change) -> pb.Change:
    """Return a change as it is handed on: words of strangers, each one bounded line."""
    signal = change.signal
    return pb.Change(
        signal_id=signal.signal_id,
        kind=KINDS.get(signal.kind, pb.Change.KIND_UNSPECIFIED),
        change_time=signal.event_time,
        title=plain(signal.summary, TITLE_MAX),
        description=plain(signal.description[: 2 * DESCRIPTION_MAX], DESCRIPTION_MAX),
        version=plain(signal.labels.get("version", ""), WORD_MAX),
        actor=plain(signal.labels.get("actor", ""), WORD_MAX),
        status=plain(signal.status_raw, STATUS_MAX),
        url=plain(signal.links[0].url if signal.links else "", URL_MAX),
        source=signal.source,
        target_ids=change.target_ids,
    )
