"""`opsmesh audit verify` and `show` against an export that somebody tampered with."""

import json
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from opsmesh.audit.v1 import audit_service_pb2 as audit
from services.audit.chain import ZERO_HASH, link_hash, sign, to_line
from tests.audit.events import event
from tests.cli.mesh import Mesh


def chained(count: int) -> list[audit.ExportedEvent]:
    """Return an intact log."""
    rows: list[audit.ExportedEvent] = []
    previous = ZERO_HASH
    for sequence in range(1, count + 1):
        made = event(note=str(sequence))
        made.sequence = sequence
        made.append_time.FromDatetime(datetime.now(UTC))
        link = link_hash(previous, made)
        rows.append(audit.ExportedEvent(event=made, previous_hash=previous, hash=link))
        previous = link
    return rows


def checkpoint(mesh: Mesh, *rows: audit.ExportedEvent) -> Path:
    """Write the checkpoint file of the mesh."""
    key = load_pem_private_key((mesh.pki / "log.key").read_bytes(), None)
    assert isinstance(key, Ed25519PrivateKey)
    file = mesh.state / "audit" / "checkpoints.jsonl"
    file.parent.mkdir(exist_ok=True)
    now = datetime.now(UTC)
    file.write_bytes(b"".join(to_line(sign(key, row.event.sequence, row.hash, now)) for row in rows))
    return file


async def test_an_intact_log_is_proved(mesh: Mesh) -> None:
    """Verify says how far the proof reaches and how old the last checkpoint is, and exits with 0."""
    mesh.audit.rows += chained(250)
    checkpoint(mesh, mesh.audit.rows[199])
    done = await mesh.run("audit", "verify")
    assert done.code == 0
    assert "intact: 250 events, chain up to 250, 1 checkpoints" in done.out
    assert "covers everything up to 200, 50 newer events wait for the next" in done.out
    assert "the last checkpoint is" in done.out
    told = await mesh.run("audit", "verify", "--json")
    assert told.answer["intact"] is True
    assert told.answer["last_checkpoint_age_seconds"] >= 0


async def test_a_broken_log_is_exit_code_1(mesh: Mesh) -> None:
    """Verify names what was edited, deleted and cut off."""
    mesh.audit.rows += chained(30)
    checkpoint(mesh, mesh.audit.rows[29])
    mesh.audit.rows[4].event.actor = "nobody"
    del mesh.audit.rows[20:]
    del mesh.audit.rows[10]
    done = await mesh.run("audit", "verify")
    assert done.code == 1
    for text in ("edited at 5", "deleted at 12", "truncated at 20", "BROKEN"):
        assert text in done.out
    told = await mesh.run("audit", "verify", "--json")
    assert told.code == 1
    assert {one["kind"] for one in told.answer["findings"]} == {"edited", "deleted", "truncated"}


async def test_verify_needs_the_public_key(mesh: Mesh, tmp_path: Path) -> None:
    """Without the log's key nothing is proved; the command says where to get it."""
    done = await mesh.run("audit", "verify", "--public-key", str(tmp_path / "missing.pub"))
    assert (done.code, "--public-key" in done.err) == (1, True)


async def test_an_event_is_shown_by_its_sequence(mesh: Mesh) -> None:
    """`audit show 7` is the event with that sequence; one that is not there is refused."""
    mesh.audit.rows += chained(9)
    done = await mesh.run("audit", "show", "7", "--json")
    assert done.answer["sequence"] == "7"
    assert (await mesh.run("audit", "show", "10")).code == 1


async def test_events_are_listed_by_a_tool_s_short_name(mesh: Mesh) -> None:
    """An action may be the bare RPC name of a tool; phases are words."""
    mesh.audit.rows += chained(3)
    done = await mesh.run("audit", "list", "--action", "RestartWorkload", "--phase", "intent", "--json")
    assert len(done.answer["events"]) == 3
    wrong = await mesh.run("audit", "list", "--phase", "before")
    assert (wrong.code, "intent, outcome, record" in wrong.err) == (2, True)
    assert json.loads((await mesh.run("audit", "list", "--since", "30m", "--json")).out)["events"]
    assert (await mesh.run("audit", "list", "--since", "yesterday")).code == 2
