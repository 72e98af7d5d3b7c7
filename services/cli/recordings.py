"""What `opsmesh signals replay` sends: JSON lines, a folder of bodies, or standard input. Nothing is sent from here."""

import asyncio
import base64
import binascii
import json
import os
import re
import stat
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Final, NoReturn, TextIO

from services.cli.posting import Posting
from services.cli.session import UsageError

# A line that has only these, and one of the last two, says of a body what it is; any other line is a body itself.
SOURCE, HEADERS, BODY, BASE64 = "source", "headers", "body", "body_base64"
OWN: Final = frozenset({SOURCE, HEADERS, BODY, BASE64})
LINES: Final = frozenset({".jsonl", ".ndjson"})
BODIES: Final = frozenset({".json"})
# A body of 1 MiB in base64, with its headers.
LINE_MAX: Final = 2 << 20
HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
HEADER_TEXT: Final = re.compile(r"[\t -~]*")


def recorded(path: Path, source: str) -> Iterator[Posting]:
    """Yield what a file or a folder holds, in order of names and lines; SOURCE is for what names none itself.

    A `.json` file is one body, any other file JSON lines. Below a folder a body's source is SOURCE, else the name of
    the folder directly below PATH that it lies in. Raises UsageError with the place of what cannot be read.
    """
    if not path.is_dir():
        yield from _file(path, source)
        return
    found = (Path(folder, name) for folder, _, names in os.walk(path, onerror=_unreadable) for name in names)
    for file in sorted(one for one in found if one.is_file() and one.suffix in LINES | BODIES):
        inner = file.relative_to(path).parts
        yield from _file(file, source or (inner[0] if len(inner) > 1 else ""))


def _unreadable(error: OSError) -> NoReturn:
    """Raise what `os.walk` would pass over: what is not sent must not be missing in silence."""
    raise error


async def piped(source: str) -> AsyncIterator[Posting]:
    """Yield what comes on standard input, line by line, as it comes. Raises UsageError as `recorded` does."""
    number = 0
    async for line in _stdin():
        number += 1
        if line.strip():
            yield posting_of(line.strip(), source, f"standard input, line {number}")


def posting_of(line: bytes, source: str, where: str) -> Posting:
    """Return what one line says; WHERE is its place, for who has to mend it. Raises UsageError."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        found = None
    if isinstance(found, dict) and found.keys() <= OWN and (BODY in found) != (BASE64 in found):
        return _wrapped(found, source, where)
    return _bare(line, source, where)


def _file(path: Path, source: str) -> Iterator[Posting]:
    if path.exists() and not path.is_file():
        raise UsageError(f"{path} is no file\nNEXT: `-` reads lines from standard input, as they come")
    with path.open("rb") as content:
        if path.suffix in BODIES:
            yield _bare(_bounded(content.read(LINE_MAX + 1), str(path)), source, str(path))
            return
        lines = iter(lambda: content.readline(LINE_MAX + 1), b"")
        for number, line in enumerate(lines, 1):
            where = f"{path}:{number}"
            if stripped := _bounded(line, where).strip():
                yield posting_of(stripped, source, where)


def _bounded(found: bytes, where: str) -> bytes:
    """Return what was read. Raises UsageError when it is more than any bridge takes."""
    if len(found) > LINE_MAX:
        raise UsageError(
            f"{where}: more than {LINE_MAX} bytes\nNEXT: a bridge takes 1 MiB in one body; send less at once"
        )
    return found


def _bare(body: bytes, source: str, where: str) -> Posting:
    if not source:
        raise UsageError(
            f"{where}: a body alone does not say who sends it\n"
            'NEXT: --source S, or lines such as {"source": "grafana", "body": {...}}'
        )
    return Posting(source, body)


def _wrapped(found: dict[str, Any], source: str, where: str) -> Posting:
    headers, body = found.get(HEADERS) or {}, found.get(BODY)
    name = found.get(SOURCE) or source
    if not isinstance(name, str) or not name:
        raise UsageError(f"{where}: no source\nNEXT: name it in the line as `source`, or with --source")
    if not isinstance(headers, dict) or not all(isinstance(one, str) for one in headers.values()):
        raise UsageError(f"{where}: headers are not texts by name\nNEXT: write them as {{'Name': 'text'}}")
    for key, text in headers.items():
        if not HEADER_NAME.fullmatch(key) or not HEADER_TEXT.fullmatch(text):
            raise UsageError(
                f"{where}: {key!r} is no header that can be sent\nNEXT: one line of ASCII, or leave it out"
            )
    if BASE64 in found:
        try:
            content = base64.b64decode(found[BASE64], validate=True)
        except (binascii.Error, TypeError, ValueError):
            raise UsageError(f"{where}: body_base64 is not base64\nNEXT: correct it, or write `body`") from None
    else:
        try:
            content = (body if isinstance(body, str) else json.dumps(body, ensure_ascii=False)).encode()
        except UnicodeEncodeError:
            raise UsageError(f"{where}: half a character in the body\nNEXT: send the bytes as body_base64") from None
    return Posting(name, content, headers)


def standard_input() -> TextIO:
    """Return it. Raises UsageError where the shell has closed it."""
    found: TextIO | None = sys.stdin
    if found is None:
        raise UsageError("there is no standard input\nNEXT: name a file, or pipe something in")
    return found


async def _stdin() -> AsyncIterator[bytes]:
    """Yield lines; who sends them slowly does not keep Ctrl-C waiting, as a thread that reads would."""
    mode = os.fstat(standard_input().fileno()).st_mode
    if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or sys.stdin.isatty()):
        for line in sys.stdin.buffer:
            yield line
        return
    reader = asyncio.StreamReader(limit=LINE_MAX)
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    try:
        while line := await reader.readline():
            yield line
    except ValueError:
        raise UsageError(f"standard input: a line of more than {LINE_MAX} bytes\nNEXT: send less at once") from None
    finally:
        transport.close()
