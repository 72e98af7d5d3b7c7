"""I6 in its short form: `make bench` has the long one, with its histogram."""

from pathlib import Path

from opsmesh.guardrails.v1 import kill_switch_service_pb2 as pb
from opsmesh.guardrails.v1 import kill_switch_service_pb2_grpc as rpc
from services.local.waiting import until
from tests.bench.kill import CLIENTS, NEVER_ABOVE, measure
from tests.gateway.fakes import GATEWAY
from tests.gateway.guarded import guarded
from tests.stores import Database

ROUNDS = 6


async def test_no_effect_starts_later_than_two_seconds_after_a_kill(postgres: Database, tmp_path: Path) -> None:
    """Real guardrails and gateway, clients with good grants, every other round cut off: never above 2 s."""
    async with postgres.fresh() as database, guarded(tmp_path, database, CLIENTS) as house:
        found = await measure(house, ROUNDS)
        async with house.channel("guardrails", "operator") as channel:
            stub = rpc.KillSwitchServiceStub(channel)

            async def all_reported() -> None:
                """Hold once the gateway has told about every kill, and has nothing under way."""
                answer = await stub.GetStatus(pb.GetStatusRequest(include_released=True))
                assert len(answer.kills) == ROUNDS
                stops = [stop for kill in answer.kills for stop in kill.stops if stop.reporter == GATEWAY]
                assert {stop.state for stop in stops} <= {pb.Stop.STATE_STOPPED}

            await until(all_reported, "the gateway's reports", 40, AssertionError)
    late = [*found.late[False], *found.late[True]]
    assert len(late) == ROUNDS
    assert max(late) <= NEVER_ABOVE
    assert found.effects >= ROUNDS * CLIENTS
    assert set(found.reasons) <= {"KILLED", "LEASE_STALE"}
    assert {"KILLED", "LEASE_STALE"} <= set(found.reasons)
