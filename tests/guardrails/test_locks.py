"""Target locks over the real chain: one holder at a time, fences that only grow."""

import asyncio
import uuid
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.duration_pb2 import Duration

from opsmesh.guardrails.v1 import target_lock_service_pb2 as pb
from services.mesh.client import refusal_of
from tests.guardrails.world import CHECKOUT, PAYMENTS, House, reason_of, restart


def asking(**fields: Any) -> pb.AcquireLockRequest:
    """Return a request for checkout's lock."""
    return pb.AcquireLockRequest(**{"request_id": str(uuid.uuid4()), "target_id": CHECKOUT} | fields)


def releasing(lock: pb.TargetLock, **fields: Any) -> pb.ReleaseLockRequest:
    """Return the request that gives a lock back, as its holder."""
    given: dict[str, Any] = {"request_id": str(uuid.uuid4()), "target_id": lock.target_id, "fence": lock.fence}
    return pb.ReleaseLockRequest(**given | {"execution_id": lock.holder} | fields)


async def lapse(home: House) -> None:
    """Let every lock lapse, as time would."""
    await home.fetch("UPDATE guardrails.locks SET expire_time = clock_timestamp() RETURNING fence")


async def test_fifty_ask_and_one_gets_it(home: House) -> None:
    """Of fifty executions that ask at once one gets the lock; the others hear who holds it and when to ask again."""
    await home.publish()

    async def ask() -> pb.AcquireLockResponse | grpc.aio.AioRpcError:
        try:
            return await home.locks().AcquireLock(asking(execution_id=str(uuid.uuid4())))
        except grpc.aio.AioRpcError as error:
            return error

    answers = await asyncio.gather(*(ask() for _ in range(50)))
    won = [one for one in answers if isinstance(one, pb.AcquireLockResponse)]
    assert len(won) == 1
    for error in answers:
        if isinstance(error, grpc.aio.AioRpcError):
            refusal = refusal_of(error)
            assert refusal is not None
            assert (refusal.name, refusal.metadata["holder"]) == ("LOCK_HELD", won[0].lock.holder)
            assert refusal.retry_after is not None
            assert 0 < refusal.retry_after <= 1


async def test_fences_only_grow(home: House) -> None:
    """Under fifty executions that take and give back in turn every fence is new and higher than all before."""
    await home.publish()
    fences: list[int] = []

    async def work() -> None:
        execution_id = str(uuid.uuid4())
        while True:
            try:
                lock = (await home.locks().AcquireLock(asking(execution_id=execution_id))).lock
            except grpc.aio.AioRpcError as error:
                assert reason_of(error) == "LOCK_HELD"  # noqa: PT017  anything else is a mistake
                continue
            fences.append(lock.fence)
            await home.locks().ReleaseLock(releasing(lock))
            return

    async with asyncio.timeout(60):
        await asyncio.gather(*(work() for _ in range(50)))
    assert fences == sorted(set(fences))
    assert len(fences) == 50


async def test_its_holder_keeps_its_fence(home: House) -> None:
    """Taken again while it holds: the same fence; taken again after it lapsed or was given back: a new one."""
    await home.publish()
    execution_id = str(uuid.uuid4())
    first = await home.lock(execution_id=execution_id)
    assert (await home.lock(execution_id=execution_id)).fence == first.fence == 1
    await lapse(home)
    second = await home.lock(execution_id=execution_id)
    assert second.fence == 2
    await home.locks().ReleaseLock(releasing(second))
    assert (await home.lock(execution_id=str(uuid.uuid4()))).fence == 3
    assert (await home.lock(PAYMENTS, execution_id)).fence == 1


async def test_a_lost_lock_is_not_renewed(home: House) -> None:
    """Renewing moves the end; a lock that lapsed, another's or another fence's is LOCK_REQUIRED."""
    await home.publish()
    execution_id = str(uuid.uuid4())
    lock = (await home.locks().AcquireLock(asking(execution_id=execution_id))).lock
    renewing = pb.RenewLockRequest(
        target_id=CHECKOUT, fence=lock.fence, execution_id=execution_id, ttl_duration=Duration(seconds=60)
    )
    renewed = (await home.locks().RenewLock(renewing)).lock
    assert renewed.fence == lock.fence
    assert renewed.expire_time.seconds - lock.expire_time.seconds >= 29
    wrong: list[dict[str, Any]] = [
        {"fence": lock.fence + 1},
        {"execution_id": str(uuid.uuid4())},
        {"target_id": PAYMENTS},
    ]
    for change in wrong:
        other = pb.RenewLockRequest()
        other.CopyFrom(renewing)
        other.MergeFrom(pb.RenewLockRequest(**change))
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await home.locks().RenewLock(other)
        assert reason_of(raised.value) == "LOCK_REQUIRED"
    await lapse(home)
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await home.locks().RenewLock(renewing)
    assert reason_of(raised.value) == "LOCK_REQUIRED"


async def test_nobody_gives_back_what_another_holds(home: House) -> None:
    """A release by another holder or with an old fence is no error and frees nothing."""
    await home.publish()
    lock = await home.lock(execution_id=str(uuid.uuid4()))
    await home.locks().ReleaseLock(releasing(lock, execution_id=str(uuid.uuid4())))
    await home.locks().ReleaseLock(releasing(lock, fence=lock.fence + 1))
    await home.locks("operator").ReleaseLock(releasing(lock, execution_id=""))
    (row,) = await home.fetch("SELECT holder, expire_time > now() AS held FROM guardrails.locks")
    assert (row["holder"], row["held"]) == (lock.holder, True)


async def test_a_repeated_request_gets_the_stored_answer(home: House) -> None:
    """The same request_id again gets the first answer, also after another has the lock; other content is refused."""
    await home.publish()
    request = asking(execution_id=str(uuid.uuid4()))
    first = await home.locks().AcquireLock(request)
    await lapse(home)
    await home.lock(execution_id=str(uuid.uuid4()))
    assert await home.locks().AcquireLock(request) == first
    request.target_id = PAYMENTS
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await home.locks().AcquireLock(request)
    assert reason_of(raised.value) == "REQUEST_ID_REUSED"


async def test_who_holds_is_not_claimed(home: House) -> None:
    """A person holds in their own name only, a service for an execution only."""
    await home.publish()
    for name, execution_id in (("operator", str(uuid.uuid4())), ("automation", "")):
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await home.locks(name).AcquireLock(asking(execution_id=execution_id))
        assert reason_of(raised.value) == "INVALID_ARGUMENT"
    assert (await home.lock(name="operator")).holder == "human/operator"


async def test_only_what_the_inventory_knows_is_locked(home: House) -> None:
    """Without a policy set nothing is locked, and with one no target that its inventory lacks."""
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await home.lock(name="operator")
    assert reason_of(raised.value) == "NO_POLICY_SET"
    await home.publish()
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await home.lock("svc:demo/unheard-of", name="operator")
    assert reason_of(raised.value) == "TARGET_UNKNOWN"
    assert "unheard-of" in str(raised.value.details())


async def test_a_grant_ends_with_its_lock(home: House) -> None:
    """A grant never outlives the lock whose fence it carries."""
    await home.publish()
    context = await home.ready()
    await home.fetch("UPDATE guardrails.locks SET expire_time = clock_timestamp() + interval '20 s' RETURNING fence")
    grant = home.opened((await home.authorize(restart(), context)).grant)
    assert 0 < grant.expire_time.seconds - grant.issue_time.seconds <= 20
