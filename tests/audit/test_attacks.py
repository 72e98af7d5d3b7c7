"""The log on real PostgreSQL under attack: what is refused, and what is found afterwards."""

from datetime import timedelta

import asyncpg
import pytest

from services.audit.chain import Kind
from services.mesh.errors import Refusal
from tests.audit.events import event, events
from tests.audit.running import Audit

CHANGES = (
    "UPDATE audit.events SET actor = 'nobody'",
    "UPDATE audit.events SET actor = 'nobody' WHERE false",
    "DELETE FROM audit.events",
    "TRUNCATE audit.events",
    "ALTER TABLE audit.events DISABLE TRIGGER ALL",
    "DROP TABLE audit.events",
    "SET session_replication_role = replica",
)


@pytest.mark.parametrize("statement", CHANGES)
async def test_the_service_role_can_only_insert(audit_log: Audit, statement: str) -> None:
    """As the service's own role nothing that is written can be changed."""
    await audit_log.append(events(3))
    connection = await asyncpg.connect(audit_log.database.dsn("audit"))
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await connection.execute(statement)
    await connection.close()
    assert (await audit_log.verify()).intact


@pytest.mark.parametrize("statement", CHANGES[:4])
async def test_triggers_refuse_even_the_owner(audit_log: Audit, statement: str) -> None:
    """Who may change the table by right still meets the trigger."""
    await audit_log.append(events(3))
    for role in ("owner", "postgres"):
        connection = await asyncpg.connect(audit_log.database.dsn(role))
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match="append-only"):
            await connection.execute(statement)
        await connection.close()


async def test_other_services_cannot_see_the_log(audit_log: Audit) -> None:
    """Only audit and the reader may select; only audit may insert."""
    for role in ("gateway", "router", "ingest", "guardrails", "automation"):
        connection = await asyncpg.connect(audit_log.database.dsn(role))
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.fetch("SELECT sequence FROM audit.events")
        await connection.close()
    reader = await asyncpg.connect(audit_log.database.dsn("reader"))
    assert await reader.fetchval("SELECT count(*) FROM audit.events") == 0
    await reader.close()


async def test_a_row_that_does_not_follow_the_head_is_refused(audit_log: Audit) -> None:
    """The database itself refuses a gap, a wrong predecessor and a second beginning, whoever inserts."""
    await audit_log.append(events(3))
    connection = await asyncpg.connect(audit_log.database.dsn("audit"))
    row = await connection.fetchrow("SELECT * FROM audit.events WHERE sequence = 3")
    assert row is not None
    columns = list(row.keys())
    for sequence, previous in ((4, bytes(32)), (5, row["hash"]), (4, row["previous_hash"])):
        forged = dict(row) | {"sequence": sequence, "previous_hash": previous, "event_id": event().event_id}
        with pytest.raises(asyncpg.SerializationError):
            await connection.copy_records_to_table(
                "events", schema_name="audit", columns=columns, records=[tuple(forged[name] for name in columns)]
            )
    await connection.close()
    assert (await audit_log.verify()).events == 3


async def test_no_time_makes_the_log_unreadable(audit_log: Audit) -> None:
    """A writer may lie about the time, but not with one that PostgreSQL would keep as infinite."""
    await audit_log.append(events(1))
    last = event()
    last.event_time.seconds, last.event_time.nanos = 253_402_300_799, 999_999_999
    with pytest.raises(Refusal, match="INVALID_ARGUMENT"):
        await audit_log.append([last])
    last.event_time.seconds -= 1
    await audit_log.append([last])
    assert (await audit_log.verify()).intact


@pytest.mark.parametrize("moment", ["infinity", "-infinity"])
async def test_an_infinite_time_is_found_like_any_edit(audit_log: Audit, moment: str) -> None:
    """A superuser who writes what no writer can is found by the verifier, which does not stop at that row."""
    await audit_log.append(events(3))
    await audit_log.attack(f"UPDATE audit.events SET event_time = '{moment}' WHERE sequence = 2")  # noqa: S608  ours
    assert [(one.kind, one.sequence) for one in (await audit_log.verify()).findings] == [(Kind.EDITED, 2)]


EDITS = {
    "sequence": "sequence + 100",
    "event_id": "gen_random_uuid()",
    "phase": "3",
    "rule_set_version": "7",
    "policy_set_version": "7",
    "outcome": "1",
    "details": """'{"note": "another"}'""",
    "event_time": "event_time + interval '1 microsecond'",
    "append_time": "append_time + interval '1 microsecond'",
    "previous_hash": "sha256('')",
    "hash": "sha256('')",
}
TEXTS = (
    "actor on_behalf_of action target environment region incident_id decision_id execution_id step_id reason "
    "request_id request_digest trace_id writer"
)


async def test_every_edited_column_is_found(audit_log: Audit) -> None:
    """A superuser who changes any column of a row, old or newest, leaves a broken hash."""
    await audit_log.append(events(4))
    edits = EDITS | dict.fromkeys(TEXTS.split(), "'x'")
    connection = await asyncpg.connect(audit_log.database.dsn("postgres"))
    assert set(edits) == {
        row["column_name"]
        for row in await connection.fetch(
            "SELECT column_name FROM information_schema.columns WHERE table_schema = 'audit' AND table_name = 'events'"
        )
    }
    await connection.close()
    await audit_log.attack("CREATE TABLE public.kept AS SELECT * FROM audit.events")
    for column, value in edits.items():
        await audit_log.attack(f"UPDATE audit.events SET {column} = {value} WHERE sequence = 2")  # noqa: S608  fixed
        assert await audit_log.kinds(), column
        await audit_log.attack("TRUNCATE audit.events", "INSERT INTO audit.events SELECT * FROM public.kept")
    assert (await audit_log.verify()).intact


async def test_a_deleted_row_is_found(audit_log: Audit) -> None:
    """A gap is found without any checkpoint."""
    await audit_log.append(events(9))
    await audit_log.attack("DELETE FROM audit.events WHERE sequence = 5")
    assert Kind.DELETED in await audit_log.kinds()


async def test_a_truncated_log_is_found(audit_log: Audit) -> None:
    """The end cannot be cut off below a checkpoint, nor the whole be emptied."""
    await audit_log.append(events(9))
    await audit_log.checkpoint()
    await audit_log.attack("DELETE FROM audit.events WHERE sequence > 5")
    assert await audit_log.kinds() == {Kind.TRUNCATED}
    await audit_log.attack("TRUNCATE audit.events")
    assert await audit_log.kinds() == {Kind.TRUNCATED}


async def test_reordered_rows_are_found(audit_log: Audit) -> None:
    """Two rows that changed places are found."""
    await audit_log.append(events(9))
    await audit_log.attack(
        "UPDATE audit.events SET sequence = 100 WHERE sequence = 3",
        "UPDATE audit.events SET sequence = 3 WHERE sequence = 4",
        "UPDATE audit.events SET sequence = 4 WHERE sequence = 100",
    )
    assert {Kind.EDITED, Kind.RELINKED} <= await audit_log.kinds()


async def test_a_rewritten_log_is_found_by_its_checkpoint(audit_log: Audit) -> None:
    """A superuser who edits a row and links everything after it anew leaves no broken hash, but a broken checkpoint."""
    await audit_log.append(events(9))
    await audit_log.checkpoint()
    await audit_log.attack("UPDATE audit.events SET outcome = 1 WHERE sequence = 4")
    await audit_log.rewrite(4)
    assert await audit_log.kinds() == {Kind.REWRITTEN}


async def test_a_removed_row_in_a_rewritten_log_is_found(audit_log: Audit) -> None:
    """Removing a row, closing the gap and linking anew is found as well, also once the log has grown past it."""
    await audit_log.append(events(9))
    await audit_log.checkpoint()
    await audit_log.attack(
        "DELETE FROM audit.events WHERE sequence = 4",
        "UPDATE audit.events SET sequence = sequence + 1000 WHERE sequence > 4",
        "UPDATE audit.events SET sequence = sequence - 1001 WHERE sequence > 1000",
    )
    await audit_log.rewrite(4)
    assert await audit_log.kinds() == {Kind.TRUNCATED}
    await audit_log.append_again(event())
    assert Kind.REWRITTEN in await audit_log.kinds()


async def test_what_the_sequencer_knew_is_sworn_to_when_the_log_lost_it(audit_log: Audit) -> None:
    """Rows newer than any checkpoint that vanish under a running sequencer are found after its next append."""
    await audit_log.append(events(3))
    await audit_log.checkpoint()
    await audit_log.append(events(3))
    await audit_log.attack("DELETE FROM audit.events WHERE sequence > 4")
    await audit_log.append_again(event())
    assert {Kind.REWRITTEN, Kind.TRUNCATED} & await audit_log.kinds()


async def test_a_row_before_the_first_is_found(audit_log: Audit) -> None:
    """The export hides nothing that somebody put before the beginning."""
    await audit_log.append(events(2))
    await audit_log.attack(
        "ALTER TABLE audit.events DROP CONSTRAINT events_sequence_check",
        "CREATE TABLE public.kept AS SELECT * FROM audit.events WHERE sequence = 1",
        "UPDATE public.kept SET sequence = -7, event_id = gen_random_uuid()",
        "INSERT INTO audit.events SELECT * FROM public.kept",
    )
    assert Kind.REORDERED in await audit_log.kinds()


async def test_the_age_of_the_last_checkpoint_is_told(audit_log: Audit) -> None:
    """The report says how old the newest proof is and how far it reaches."""
    await audit_log.append(events(2))
    await audit_log.checkpoint()
    await audit_log.append(events(3))
    report = await audit_log.verify()
    assert report.intact
    assert (report.covered, report.head) == (2, 5)
    assert report.checkpoint_age is not None
    assert 0 <= report.checkpoint_age < timedelta(minutes=1).total_seconds()
