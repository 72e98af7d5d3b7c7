"""A client process that holds a lock and a grant, for a test to pause: `python -m tests.gateway.holder FOLDER ...`.

It takes a command a line and answers each with a line: `take` takes the lock of the target for `LOCK_SECONDS` and says
its fence, `grant HEX HEX` keeps a request and its grant, `act` uses them and says how that ended.
"""

import asyncio
import sys
import uuid
from pathlib import Path
from typing import Any, Final

import grpc.aio

from opsmesh.guardrails.v1 import target_lock_service_pb2 as locks
from opsmesh.guardrails.v1 import target_lock_service_pb2_grpc as locks_rpc
from opsmesh.tools.workload.v1 import workload_tool_service_pb2_grpc as workload
from opsmesh.tools.workload.v1.workload_tool_service_pb2 import RestartWorkloadRequest
from services.gateway.grants import METADATA_KEY
from services.local.waiting import until
from services.mesh import tls
from services.mesh.client import connect, refusal_of
from tests.mesh.world import World

LOCK_SECONDS: Final = 1
WAIT_SECONDS: Final = 30
DONE: Final = "DONE"


async def take(stub: Any, target: str) -> int:
    """Take the lock of a target for a new execution, as soon as whoever has it lets it lapse; return its fence."""
    execution_id, fences = str(uuid.uuid4()), list[int]()

    async def attempt() -> None:
        request = locks.AcquireLockRequest(request_id=str(uuid.uuid4()), target_id=target, execution_id=execution_id)
        request.ttl_duration.seconds = LOCK_SECONDS
        fences.append((await stub.AcquireLock(request)).lock.fence)

    await until(attempt, "the lock", WAIT_SECONDS, grpc.aio.AioRpcError)
    return fences[-1]


async def act(stub: Any, request: RestartWorkloadRequest, grant: bytes) -> str:
    """Restart; return DONE, or the reason why not."""
    try:
        await stub.RestartWorkload(request, metadata=((METADATA_KEY, grant),), timeout=10)
    except grpc.aio.AioRpcError as error:
        refusal = refusal_of(error)
        return refusal.name if refusal else f"{error.code()} {error.details()}"
    return DONE


async def main(folder: Path, guardrails: str, gateway: str, target: str) -> None:
    """Do what is said, until there is no more of it."""
    credentials = tls.client_credentials(World(folder).settings("automation"))
    request, grant = RestartWorkloadRequest(), b""
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    async with (
        connect(f"127.0.0.1:{guardrails}", "guardrails", credentials) as one,
        connect(f"127.0.0.1:{gateway}", "gateway", credentials) as other,
    ):
        await asyncio.gather(one.channel_ready(), other.channel_ready())
        keeper, tools = locks_rpc.TargetLockServiceStub(one), workload.WorkloadToolServiceStub(other)
        while line := (await reader.readline()).decode().split():
            answer = "ready"
            if line[0] == "take":
                answer = str(await take(keeper, target))
            elif line[0] == "grant":
                request, grant = RestartWorkloadRequest.FromString(bytes.fromhex(line[1])), bytes.fromhex(line[2])
            else:
                answer = await act(tools, request, grant)
            sys.stdout.write(answer + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), *sys.argv[2:5]))
