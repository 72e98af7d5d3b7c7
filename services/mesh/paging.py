"""Pages as AIP-158 wants them: an opaque token that goes on after the last row, only for the same filter."""

import base64
import binascii
import hashlib
import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

from google.protobuf.message import Message

from opsmesh.type.v1 import error_reason_pb2
from services.mesh.errors import Refusal

PAGE_SIZE: Final = 50
PAGE_SIZE_MAX: Final = 1000
BIGINT_MAX: Final = 2**63 - 1


def page_size(asked: int, default: int = PAGE_SIZE) -> int:
    """Return how many rows a page holds; 0 asks for the default."""
    return min(asked or default, PAGE_SIZE_MAX)


def write_token(request: Any, *position: str | int | datetime | UUID) -> str:
    """Return the token of the page after `position`, the sort key of this page's last row."""
    plain = [one.astimezone(UTC).isoformat() if isinstance(one, datetime) else one for one in position]
    raw = json.dumps([_filter(request), *plain], default=str, separators=(",", ":")).encode()
    return base64.urlsafe_b64encode(raw).decode().rstrip("=")


def read_token(request: Any, *kinds: type) -> tuple[Any, ...] | None:
    """Return the position in the request's page token, one value per kind (int, str, datetime, UUID).

    None for the first page; a token of another filter or not of ours is refused.
    """
    if not request.page_token:
        return None
    try:
        raw = base64.urlsafe_b64decode(request.page_token + "=" * (-len(request.page_token) % 4))
        known, *plain = json.loads(raw)
        position = tuple(READERS[kind](value) for kind, value in zip(kinds, plain, strict=True))
    except (ValueError, TypeError, AttributeError, binascii.Error, RecursionError):
        raise Refusal(error_reason_pb2.ERROR_REASON_INVALID_PAGE_TOKEN) from None
    if known != _filter(request):
        raise Refusal(error_reason_pb2.ERROR_REASON_INVALID_PAGE_TOKEN)
    return position


def _filter(request: Message) -> str:
    """Return a fingerprint of what is asked for, apart from the page."""
    asked = type(request)()
    asked.CopyFrom(request)
    asked.ClearField("page_size")
    asked.ClearField("page_token")
    return hashlib.sha256(asked.SerializeToString(deterministic=True)).hexdigest()[:16]


def _integer(value: Any) -> int:
    if type(value) is not int or abs(value) > BIGINT_MAX:
        raise ValueError("not an integer")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str) or "\0" in value:
        raise ValueError("not a text")
    return value


def _time(value: Any) -> datetime:
    return datetime.fromisoformat(_text(value)).astimezone(UTC)


READERS: Final[Mapping[type, Callable[[Any], Any]]] = {int: _integer, str: _text, datetime: _time, UUID: UUID}
