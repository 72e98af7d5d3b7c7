"""Page tokens: opaque, for one filter, refused when they are not ours."""

import base64
import json
from datetime import UTC, datetime
from uuid import UUID

import pytest

from opsmesh.audit.v1 import audit_service_pb2 as pb
from services.mesh.errors import Refusal
from services.mesh.paging import page_size, read_token, write_token

POSITION = (7, "a", datetime(2026, 1, 2, tzinfo=UTC), UUID(int=5))
KINDS = (int, str, datetime, UUID)


def test_a_position_survives_the_token() -> None:
    """What is written is read again, with its types."""
    request = pb.ListEventsRequest(actor="x", page_size=10)
    request.page_token = write_token(request, *POSITION)
    request.page_size = 20
    assert read_token(request, *KINDS) == POSITION


def test_the_first_page_has_no_position() -> None:
    """An empty token starts at the beginning."""
    assert read_token(pb.ListEventsRequest(), int) is None


def test_a_token_fits_only_its_filter() -> None:
    """A token of another filter is refused: it would skip rows."""
    token = write_token(pb.ListEventsRequest(actor="x"), 7)
    with pytest.raises(Refusal, match="INVALID_PAGE_TOKEN"):
        read_token(pb.ListEventsRequest(actor="y", page_token=token), int)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"[]",
        b"{}",
        b"7",
        b"null",
        b"[1,2]",
        b'["x","y"]',
        b"[" * 300,
        b"\xff\xfe",
        json.dumps(["x", 2**70]).encode(),
    ],
)
def test_what_is_no_token_of_ours_is_refused(raw: bytes) -> None:
    """Nonsense of any kind is a refusal, never an exception."""
    for token in (base64.urlsafe_b64encode(raw).decode() or "!", raw.decode("latin-1") or "é"):
        with pytest.raises(Refusal, match="INVALID_PAGE_TOKEN"):
            read_token(pb.ListEventsRequest(page_token=token), int)


def test_a_page_is_bounded() -> None:
    """0 asks for the default; nobody gets more than a thousand rows."""
    assert [page_size(0), page_size(3), page_size(10**6), page_size(0, 7)] == [50, 3, 1000, 7]
