"""`opsmesh incidents show` says until when an incident stays open that no resolve will end."""

import uuid

from tests.cli import fakes
from tests.cli.mesh import Mesh


async def test_until_when_an_occurrence_is_kept_is_shown(mesh: Mesh) -> None:
    """While it fires until when, once it is over since when; what a resolve ends says nothing of it."""
    shown = ("incidents", "show", str(uuid.UUID(int=1)))
    one = fakes.incident(1)
    mesh.ingest.incidents.append(one)
    assert "none, or a resolve is due" in (await mesh.run(*shown)).out
    one.expire_time.FromJsonString("2026-03-01T13:00:00Z")
    one.firing = True
    assert "over at 2026-03-01T13:00:00Z unless told again" in (await mesh.run(*shown)).out
    one.firing = False
    assert "not told again: over since 2026-03-01T13:00:00Z" in (await mesh.run(*shown)).out
