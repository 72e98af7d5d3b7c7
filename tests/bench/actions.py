"""What authorisation and the gateway's checks add to a tool call: the same restart with the mesh, and without it.

Without it means: the gateway's own tool, called in this process, against the same process manager, which does at once
what it is told. With it: AuthorizeAction, then RestartWorkload over mTLS, with everything DESIGN section 6 asks, the
acknowledged audit intent included. They take turns; the lock is taken once, before.
"""

import time
import uuid
from itertools import pairwise
from statistics import median
from typing import Final

from opsmesh.guardrails.v1 import guardrails_service_pb2 as guardrails
from opsmesh.guardrails.v1 import target_lock_service_pb2 as locks
from opsmesh.guardrails.v1 import target_lock_service_pb2_grpc as locks_grpc
from opsmesh.tools.workload.v1 import workload_tool_service_pb2 as pb
from opsmesh.tools.workload.v1 import workload_tool_service_pb2_grpc as rpc
from services.gateway import backends
from services.gateway.tools.workload import WorkloadTools
from services.local.reach import channels
from services.mesh.call import working
from tests.bench.table import Row, percentile
from tests.flows.world import RESTART, World

TARGET: Final = "svc:demo/stub"
GRANT: Final = "opsmesh-grant-bin"
CALLS: Final = 60
WARM_UP: Final = 5
ADDED_MAX_MS: Final = 15.0


async def row(world: World) -> Row:
    """Measure."""
    direct: list[float] = []
    judged: list[float] = []
    acted: list[float] = []
    tools = WorkloadTools(backends.load(world.mesh.config / "backends.yaml", world.mesh.state).workloads)
    async with channels(world.mesh) as channel:
        held = locks.AcquireLockRequest(request_id=str(uuid.uuid4()), target_id=TARGET)
        held.ttl_duration.seconds = 60
        await locks_grpc.TargetLockServiceStub(channel("guardrails")).AcquireLock(held)
        gateway = rpc.WorkloadToolServiceStub(channel("gateway"))
        for number in range(WARM_UP + CALLS):
            if number == WARM_UP:
                direct, judged, acted = [], [], []
            request = pb.RestartWorkloadRequest(request_id=str(uuid.uuid4()), target_id=TARGET, reason="bench")
            times = [time.perf_counter()]
            with working("human/operator", RESTART, 10):
                await tools.restart_workload(request, {})
            times.append(time.perf_counter())
            asked = guardrails.AuthorizeActionRequest(method=RESTART, request=request.SerializeToString())
            answer = await world.stubs.guardrails.AuthorizeAction(asked)
            if not answer.grant:
                raise RuntimeError(f"the restart is not allowed: {answer.judgement}")
            times.append(time.perf_counter())
            await gateway.RestartWorkload(
                pb.RestartWorkloadRequest.FromString(answer.request), metadata=((GRANT, answer.grant),)
            )
            times.append(time.perf_counter())
            for found, (start, end) in zip((direct, judged, acted), pairwise(times), strict=True):
                found.append((end - start) * 1000)
    await tools.close()
    added = [judge + act - alone for judge, act, alone in zip(judged, acted, direct, strict=True)]
    half = median(added)
    return Row(
        "AuthorizeAction and gateway, added to a restart",
        f"p50 +{half:.1f} ms, p99 +{percentile(added, 99):.1f} ms",
        f"without: {median(direct):.1f} ms; AuthorizeAction {median(judged):.1f} ms, gateway {median(acted):.1f} ms",
        bar=f"p50 < {ADDED_MAX_MS:g} ms",
        met=half < ADDED_MAX_MS,
    )
