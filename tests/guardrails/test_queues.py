"""The queue of a lock, and claims: who goes first, who waits no more, and that a claim blocks no lock."""

import asyncio
import uuid

import asyncpg
import grpc.aio
import pytest

from opsmesh.guardrails.v1 import target_lock_service_pb2 as pb
from opsmesh.guardrails.v1 import target_lock_service_pb2_grpc as rpc
from services.guardrails.locks import queue as locks
from services.guardrails.locks.queue import Held, Rank, rank_of
from services.mesh.client import refusal_of
from services.mesh.errors import Refusal
from tests.guardrails import running
from tests.guardrails.test_locks import lapse, releasing
from tests.guardrails.world import CHECKOUT, PAYMENTS, House, reason_of

PERSON, RULE = "operator", "automation"


async def ask(home: House, holder: str, name: str = RULE) -> pb.TargetLock | grpc.aio.AioRpcError:
    """Ask once for checkout's lock; return it, or the refusal."""
    request = pb.AcquireLockRequest(
        request_id=str(uuid.uuid4()), target_id=CHECKOUT, execution_id="" if name == PERSON else holder
    )
    try:
        return (await home.locks(name).AcquireLock(request)).lock
    except grpc.aio.AioRpcError as error:
        return error


async def queue(home: House) -> list[tuple[str, int]]:
    """Return who waits for checkout, first come first."""
    listed = (await home.locks("approver").ListLocks(pb.ListLocksRequest())).locks
    return [(waiter.holder, waiter.rank) for lock in listed if lock.target_id == CHECKOUT for waiter in lock.waiters]


async def test_a_person_then_rules_then_agents(home: House) -> None:
    """Five wait: whoever asks, the lock goes to the person, then to the rules as they came, then to the agent."""
    await home.publish()
    agent, first, second, third = (str(uuid.uuid4()) for _ in range(4))
    ranks = {agent: Rank.AGENT, first: Rank.RULE, second: Rank.RULE, third: Rank.RULE, "human/operator": Rank.PERSON}
    assert [rank_of(one) for one in ("human/operator", "service/automation", "service/agents")] == list(Rank)
    lock = await home.lock(execution_id=str(uuid.uuid4()))
    expected = [("human/operator", 1), (first, 2), (second, 2), (third, 2), (agent, 3)]
    fences = [lock.fence]
    dsn, settings = home.database.dsn("guardrails"), {"search_path": "guardrails"}
    async with asyncpg.create_pool(dsn, server_settings=settings) as pool:

        async def attempt(holder: str) -> Held:
            async with pool.acquire() as connection, connection.transaction():
                return await locks.acquire(connection, CHECKOUT, holder, 30, ranks[holder])

        for holder, rank in ranks.items():
            with pytest.raises(Refusal) as raised:
                await locks.or_wait(pool, attempt(holder), CHECKOUT, holder, rank)
            assert raised.value.metadata["holder"] == lock.holder
        assert await queue(home) == expected
        await home.locks().ReleaseLock(releasing(lock))
        for place, (holder, _) in enumerate(expected):
            for later, _ in reversed(expected[place + 1 :]):
                with pytest.raises(Refusal) as raised:
                    await locks.or_wait(pool, attempt(later), CHECKOUT, later, ranks[later])
                assert f"{holder} waits first" in raised.value.metadata["holder"]
            held = await attempt(holder)
            fences.append(held.fence)
            assert await queue(home) == expected[place + 1 :]
            async with pool.acquire() as connection:
                await locks.release(connection, CHECKOUT, holder, held.fence)
    assert fences == sorted(set(fences))


async def test_the_queue_survives_the_refusal(home: House) -> None:
    """A refused person waits before a rule that asked earlier, although both requests were rolled back."""
    await home.publish()
    lock, rule = await home.lock(execution_id=str(uuid.uuid4())), str(uuid.uuid4())
    for holder, name in ((rule, RULE), ("", PERSON)):
        assert isinstance(await ask(home, holder, name), grpc.aio.AioRpcError)
    assert await queue(home) == [("human/operator", Rank.PERSON), (rule, Rank.RULE)]
    await home.locks().ReleaseLock(releasing(lock))
    assert isinstance(await ask(home, rule), grpc.aio.AioRpcError)
    assert isinstance(await ask(home, "", PERSON), pb.TargetLock)
    assert await queue(home) == [(rule, Rank.RULE)]


async def test_a_dead_waiter_blocks_nobody(home: House) -> None:
    """Whoever does not ask again within 3 s waits no more, and comes last when it does."""
    await home.publish()
    lock = await home.lock(execution_id=str(uuid.uuid4()))
    first, second = str(uuid.uuid4()), str(uuid.uuid4())
    for one in (first, second):
        await ask(home, one)
    await home.locks().ReleaseLock(releasing(lock))
    assert isinstance(await ask(home, second), grpc.aio.AioRpcError)
    sql = "UPDATE guardrails.lock_waiters SET seen_time = now() - interval '3.1 s' WHERE holder = $1 RETURNING true"
    await home.fetch(sql, first)
    got = await ask(home, second)
    assert isinstance(got, pb.TargetLock)
    third = str(uuid.uuid4())
    for one in (third, first):
        assert isinstance(await ask(home, one), grpc.aio.AioRpcError)
    assert [holder for holder, _ in await queue(home)] == [third, first]


async def test_the_first_of_the_queue_asks_again_sooner(home: House) -> None:
    """Whoever goes next hears to come back within 0.2 s, the others later, nobody after more than a second."""
    await home.publish()
    await home.lock(execution_id=str(uuid.uuid4()))
    pauses = []
    for _ in range(7):
        refused = await ask(home, str(uuid.uuid4()))
        assert isinstance(refused, grpc.aio.AioRpcError)
        refusal = refusal_of(refused)
        assert refusal is not None
        pauses.append(refusal.retry_after or 0)
    assert pauses[0] == pytest.approx(0.2)
    assert pauses == sorted(pauses)
    assert pauses[-1] == pytest.approx(1.0)


async def test_a_lapsed_lock_goes_to_the_queue(home: House) -> None:
    """A holder that comes back after its lock lapsed goes behind those who waited."""
    await home.publish()
    holder, waiter = str(uuid.uuid4()), str(uuid.uuid4())
    await home.lock(execution_id=holder)
    await ask(home, waiter)
    await lapse(home)
    assert isinstance(await ask(home, holder), grpc.aio.AioRpcError)
    assert isinstance(await ask(home, waiter), pb.TargetLock)


async def test_locks_are_listed_in_pages(home: House) -> None:
    """Locks in force are listed by target, page by page; free ones that nobody wants are not."""
    await home.publish()
    for target in (PAYMENTS, CHECKOUT):
        await home.lock(target, str(uuid.uuid4()))
    stub = home.locks("operator")
    first = await stub.ListLocks(pb.ListLocksRequest(page_size=1))
    second = await stub.ListLocks(pb.ListLocksRequest(page_size=1, page_token=first.next_page_token))
    assert [lock.target_id for lock in (*first.locks, *second.locks)] == [CHECKOUT, PAYMENTS]
    assert not second.next_page_token
    await lapse(home)
    assert not (await stub.ListLocks(pb.ListLocksRequest())).locks


def claims(home: House) -> "rpc.TargetLockServiceAsyncStub":
    """Return the stub of agents."""
    return home.locks("agents")


async def test_one_agent_claims_a_target(home: House) -> None:
    """Of ten runs one claims a target; the others hear which; given back, or lapsed, another may have it."""
    await running.publish(home)
    incident = home.ingest.open(CHECKOUT, PAYMENTS)
    runs = [(await running.register(home, incident, CHECKOUT, PAYMENTS)).run_id for _ in range(10)]

    async def claim(run_id: str, target_id: str = CHECKOUT) -> str:
        request = pb.AcquireClaimRequest(request_id=str(uuid.uuid4()), target_id=target_id, run_id=run_id)
        try:
            return (await claims(home).AcquireClaim(request)).claim.run_id
        except grpc.aio.AioRpcError as error:
            refusal = refusal_of(error)
            assert refusal is not None
            assert refusal.name == "CLAIM_HELD"
            return refusal.metadata["holder"]

    answers = await asyncio.gather(*(claim(run) for run in runs))
    (owner,) = set(answers)
    assert await claim(owner) == owner
    assert await claim(runs[0], PAYMENTS) == runs[0]
    other = next(run for run in runs if run != owner)
    for run in (other, owner):
        giving = pb.ReleaseClaimRequest(request_id=str(uuid.uuid4()), target_id=CHECKOUT, run_id=run)
        await claims(home).ReleaseClaim(giving)
        assert await claim(other) == (owner if run == other else other)
    renewing = pb.RenewClaimRequest(target_id=CHECKOUT, run_id=other)
    assert (await claims(home).RenewClaim(renewing)).claim.run_id == other
    await home.fetch("UPDATE guardrails.claims SET expire_time = now() RETURNING true")
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await claims(home).RenewClaim(renewing)
    assert reason_of(raised.value) == "CLAIM_REQUIRED"
    assert await claim(owner) == owner


async def test_a_claim_blocks_no_lock(home: House) -> None:
    """A claimed target is locked as ever; only targets of the inventory are claimed, and only by agents."""
    await running.publish(home)
    run = await running.register(home, home.ingest.open(CHECKOUT), CHECKOUT)
    request = pb.AcquireClaimRequest(request_id=str(uuid.uuid4()), target_id=CHECKOUT, run_id=run.run_id)
    await claims(home).AcquireClaim(request)
    assert (await home.lock(execution_id=str(uuid.uuid4()))).fence == 1
    unheard = pb.AcquireClaimRequest(request_id=str(uuid.uuid4()), target_id="svc:demo/no", run_id=request.run_id)
    for stub, asked, reason in (
        (claims(home), unheard, "TARGET_UNKNOWN"),
        (home.locks(), request, "PERMISSION_DENIED"),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await stub.AcquireClaim(asked)
        assert reason_of(raised.value) == reason
