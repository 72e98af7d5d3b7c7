"""JSON as models write it, read strictly: what two readers could read differently is not read at all."""

import json
from collections.abc import Iterable
from typing import Any, Final

JSON_DEPTH_MAX: Final = 64


class UnreadableError(ValueError):
    """JSON that is not what it must be."""


def canonical(value: Any) -> str:
    """Return the one compact JSON text of a value."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False)


def read_object(text: str) -> dict[str, Any]:
    """Read one JSON object: no key twice, no NaN, at most 64 levels deep; UnreadableError says what is wrong."""
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise UnreadableError(f"not JSON: {str(error)[:100]}") from None
    if not isinstance(value, dict):
        raise UnreadableError("not a JSON object")
    if _depth(value) > JSON_DEPTH_MAX:
        raise UnreadableError(f"nested deeper than {JSON_DEPTH_MAX} levels")
    try:
        canonical(value).encode()
    except (ValueError, RecursionError):
        # Numbers beyond a double, lone surrogates: text that no other reader would read alike.
        raise UnreadableError("not JSON: a number or character that cannot be written again") from None
    return value


def _depth(value: Any) -> int:
    """Return how deep a value is nested, without recursion; never more than one above the limit."""
    level, depth = [value], 0
    while level and depth <= JSON_DEPTH_MAX:
        depth += 1
        inner: list[Any] = []
        for one in level:
            inner += one.values() if isinstance(one, dict) else one if isinstance(one, list) else ()
        level = inner
    return depth


def _unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key[:40]!r} is there twice")
        found[key] = value
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")
