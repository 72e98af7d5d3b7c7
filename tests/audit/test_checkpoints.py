"""The checkpoint file: only grows, survives a crash within a line, and refuses a key that is none."""

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from services.audit.chain import ZERO_HASH, read_checkpoints
from services.audit.checkpoints import CheckpointFile, load_key
from services.audit.domain import Head
from services.mesh.errors import BootError

KEY = Ed25519PrivateKey.generate()


async def test_only_a_changed_head_is_written_again(tmp_path: Path) -> None:
    """The periodic checkpoint writes nothing while nothing happens, also after a restart."""
    path = tmp_path / "deep" / "checkpoints.jsonl"
    head = Head(3, b"3" * 32)
    for _ in range(2):
        file = CheckpointFile(KEY, path)
        await file.write_if_changed(head)
        await file.write_if_changed(head)
    assert len(path.read_bytes().splitlines()) == 1
    assert CheckpointFile(KEY, path).last_kept == head


async def test_a_torn_line_is_cut_off(tmp_path: Path) -> None:
    """What a crash left of an unacknowledged checkpoint does not make the file unreadable for ever."""
    path = tmp_path / "checkpoints.jsonl"
    await CheckpointFile(KEY, path).write(Head(1, ZERO_HASH))
    with path.open("ab") as file:
        file.write(b'{"sequence": "2", "ha')
    await CheckpointFile(KEY, path).write(Head(2, ZERO_HASH))
    checkpoints = read_checkpoints(path, KEY.public_key())
    assert (checkpoints.count, checkpoints.covered, list(checkpoints.findings)) == (2, 2, [])


async def test_a_forged_line_does_not_hide_what_was_sworn_to(tmp_path: Path) -> None:
    """Behind a line that is not ours the newest head is still known, so that a lost one is noticed after a restart."""
    path, head = tmp_path / "checkpoints.jsonl", Head(7, b"7" * 32)
    await CheckpointFile(KEY, path).write(head)
    await CheckpointFile(Ed25519PrivateKey.generate(), path).write(Head(1, ZERO_HASH))
    with path.open("ab") as file:
        file.write(b"{}\nnonsense\n")
    assert CheckpointFile(KEY, path).last_kept == head


def test_a_key_that_is_none_is_refused(tmp_path: Path) -> None:
    """A missing or wrong key file is a boot error that says what to do."""
    path = tmp_path / "log.key"
    with pytest.raises(BootError, match="opsmesh certs init"):
        load_key(path)
    path.write_text("not a key")
    with pytest.raises(BootError, match="opsmesh certs init"):
        load_key(path)


def test_a_folder_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    """A checkpoint file that cannot be made is a boot error, not a surprise ten seconds later."""
    (tmp_path / "file").write_text("")
    with pytest.raises(BootError, match="OPSMESH_CHECKPOINT_FILE"):
        CheckpointFile(KEY, tmp_path / "file" / "checkpoints.jsonl")
