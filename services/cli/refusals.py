"""A failed call in words: WHAT was refused, WHERE, and what to do NEXT."""

from typing import Final

import grpc
import grpc.aio

from services.mesh.client import refusal_of
from services.mesh.errors import Refusal, listing, spec

REFUSED, UNREACHABLE = 1, 3
SILENT: Final = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
# What tells the place of a refusal, most general first.
PLACES: Final = ("service", "method", "resource", "id", "target", "rule", "identity", "permission")


def words_of(error: grpc.aio.AioRpcError) -> tuple[str, int]:
    """Return what to tell about a failed call, and the exit code."""
    refusal = refusal_of(error)
    if refusal is not None:
        return words(refusal), REFUSED
    if error.code() in SILENT:
        return (
            f"the mesh does not answer: {error.details()}\nNEXT: opsmesh status, or start it: opsmesh up",
            UNREACHABLE,
        )
    return f"{error.code().name}: {error.details()}\nNEXT: opsmesh status", REFUSED


def words(refusal: Refusal) -> str:
    """Return WHAT, WHERE and NEXT of a refusal, each on its line, and the fields that are wrong."""
    found = spec(refusal.reason)
    filled = {key: _plain(text) for key, text in refusal.metadata.items()}
    filled["list"] = listing(filled)
    lines = [f"{refusal.name}: {_fill(found.text, filled)}"]
    where = [f"{name} {filled[name]}" for name in PLACES if filled.get(name)]
    if where:
        lines.append(f"WHERE: {', '.join(where)}")
    lines += [f"  {_plain(one.field) or '(request)'}: {_plain(one.description)}" for one in refusal.violations]
    if refusal.retry_after:
        lines.append(f"RETRY: after {refusal.retry_after:g} s")
    lines.append(f"NEXT: {_fill(found.next, filled)}")
    return "\n".join(lines)


class _Names(dict[str, str]):
    def __missing__(self, key: str) -> str:
        return f"<{key}>"


def _fill(text: str, filled: dict[str, str]) -> str:
    return text.format_map(_Names(filled))


def _plain(text: str) -> str:
    """Return text of a peer without control characters but line ends: it may quote what a stranger sent."""
    return "".join(letter if letter.isprintable() or letter == "\n" else "\ufffd" for letter in text)
