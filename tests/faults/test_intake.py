"""The short form of the intake that is killed; the long one is `python -m tests.faults.intake`."""

import os
import shutil
from collections.abc import Callable, Sequence

import asyncpg
import pytest

from services.local import postgres as pg
from tests.faults.intake import Intake
from tests.faults.intake_load import Post, Senders
from tests.faults.intake_town import MORTALS, Town
from tests.faults.world import short_folder

SEED = int(os.environ.get("FAULTS_SEED", "1"))
KILLS = 6
ALERTS = 1500
pytestmark = pytest.mark.timeout(900)
SPOILS = {
    # All rows of an alert: one alone may be what was stored although nobody got its 202.
    "have no row": "DELETE FROM ingest.signals WHERE (source, dedup_key) IN (SELECT source, dedup_key "
    "FROM ingest.signals WHERE disposition = 'JOINED' LIMIT 1)",
    # One that has counted: a copy that lost its alert would count once, not twice.
    "counts 2 times": "UPDATE ingest.signals SET disposition = 'JOINED' WHERE signal_id IN "
    "(SELECT copy.signal_id FROM ingest.signals copy JOIN ingest.signals one USING (source, dedup_key) "
    "WHERE copy.disposition = 'DUPLICATE' AND one.disposition IN ('OPENED', 'JOINED') LIMIT 1)",
    "its rows": "UPDATE ingest.incidents SET signal_count = signal_count + 1",
    "dispositions that nobody expects": "UPDATE ingest.signals SET disposition = 'DEAD_LETTER' WHERE signal_id IN "
    "(SELECT signal_id FROM ingest.signals WHERE disposition = 'JOINED' LIMIT 1)",
    ", 0 decisions": "DELETE FROM router.decisions",
}


async def test_nothing_is_lost_and_nothing_happens_twice(record_property: Callable[[str, object], None]) -> None:
    """Every 202 has its row, every alert counts once, every incident is decided once; and a breach would be seen."""
    made = Intake(SEED, KILLS, ALERTS, 2.0, print)
    missed: list[str] = []

    async def also(town: Town, senders: Senders, todo: Sequence[Post]) -> None:
        connection = await asyncpg.connect(town.machine.postgres.dsn(pg.SUPERUSER))
        for words, spoil in SPOILS.items():
            await connection.execute(spoil)
            again = Intake(SEED, KILLS, ALERTS, 2.0, print)
            await again.look(town, senders, todo)
            if not any(words in one for one in again.breaches):
                missed.append(words)
        await connection.close()

    folder = short_folder()
    await made.run(folder, also)
    for what, seen in made.table():
        record_property("figures", f"{what}: {seen}")
    assert made.breaches == []
    assert (made.lost, made.doubled) == (0, 0)
    assert set(made.killed) == set(MORTALS)
    assert missed == []
    # What a broken run leaves is kept, to look at.
    shutil.rmtree(folder, ignore_errors=True)
