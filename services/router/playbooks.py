"""Asks automation which playbooks are published."""

from typing import Final

from opsmesh.automation.v1 import playbook_service_pb2, playbook_service_pb2_grpc

PAGE_SIZE: Final = 1000
PAGES_MAX: Final = 20
SECONDS: Final = 5.0


class AutomationPlaybooks:
    """The published playbooks; raises grpc.aio.AioRpcError while automation does not answer."""

    def __init__(self, stub: "playbook_service_pb2_grpc.PlaybookServiceAsyncStub") -> None:
        self._stub = stub

    async def published(self) -> frozenset[str]:
        """Return the ids of all published playbooks."""
        found: set[str] = set()
        token = ""
        for _ in range(PAGES_MAX):
            request = playbook_service_pb2.ListPlaybooksRequest(page_size=PAGE_SIZE, page_token=token)
            answer = await self._stub.ListPlaybooks(request, timeout=SECONDS)
            found.update(one.playbook_id for one in answer.playbooks)
            token = answer.next_page_token
            if not token:
                break
        return frozenset(found)
