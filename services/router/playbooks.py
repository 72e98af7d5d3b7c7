"""Asks automation which playbooks are published."""

from typing import Final

import grpc
import grpc.aio

from opsmesh.automation.v1 import playbook_service_pb2, playbook_service_pb2_grpc
from opsmesh.type.v1 import error_reason_pb2
from services.mesh.errors import Refusal

PAGE_SIZE: Final = 1000
PAGES_MAX: Final = 20
SECONDS: Final = 5.0


class AutomationPlaybooks:
    """The published playbooks; raises a Refusal while automation does not answer."""

    def __init__(self, stub: "playbook_service_pb2_grpc.PlaybookServiceAsyncStub") -> None:
        self._stub = stub

    async def published(self) -> frozenset[str]:
        """Return the ids of all published playbooks."""
        found: set[str] = set()
        token = ""
        for _ in range(PAGES_MAX):
            request = playbook_service_pb2.ListPlaybooksRequest(page_size=PAGE_SIZE, page_token=token)
            try:
                answer = await self._stub.ListPlaybooks(request, timeout=SECONDS)
            except grpc.aio.AioRpcError as error:
                # Without it nobody can say whether a rule names something that exists.
                raise Refusal(
                    error_reason_pb2.ERROR_REASON_STORE_UNAVAILABLE, store="automation", retry_after=1.0
                ) from error
            found.update(one.playbook_id for one in answer.playbooks)
            token = answer.next_page_token
            if not token:
                break
        return frozenset(found)
