"""Ports of the local mesh."""

import pytest

from services.local import files


def test_ports_are_found_again_after_none_were_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search that failed is not the last one, and a port that was given is not given again."""

    def none_free() -> int:
        raise files.LocalError("no free ports")

    given = [files.free_port()]
    with monkeypatch.context() as patch:
        patch.setattr(files, "free_port_base", none_free)
        with pytest.raises(files.LocalError):
            given.extend(files.free_port() for _ in range(files.BLOCK))
    assert files.free_port() not in given
