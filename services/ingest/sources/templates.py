"""Bodies that an operator's template makes: names in any spelling, places left unfilled, and not quite JSON."""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from services.ingest.signal import Unreadable
from services.ingest.sources.reading import Notes, bounded, is_placeholder, read_json, text_of

# `{PID}`, `{EVENT.ID}`, `{$ZABBIX.URL}`, `{ProblemTitle}`, and Zabbix' word for what it does not know.
MACRO: Final = re.compile(r"\{\$?[A-Za-z][A-Za-z0-9_.:]{0,120}\}|\*UNKNOWN\*")
ESCAPE: Final = re.compile(rb'\\(["\\/bfnrt]|u[0-9a-fA-F]{4})|\\')
# A value without quotes that was filled in with nothing, or not at all. Strings are passed over whole: linear.
NOTHING: Final = re.compile(
    rb'"(?:[^"\\]|\\.)*+\\?(?:"|\Z)|:\s*+(?:\{\$?[A-Za-z][A-Za-z0-9_.]*+\}|(?=[,}\]]))', re.DOTALL
)
SEPARATORS: Final = str.maketrans("", "", "_-. {}$#")
NAME_MAX: Final = 128
UNFILLED_MAX: Final = 256


def read_template(body: bytes, notes: Notes) -> Any:
    """Return the JSON value of a template: values that are missing are null, a stray backslash is one."""
    try:
        return read_json(body, notes)
    except Unreadable as error:
        first = error
    mended = ESCAPE.sub(lambda match: match[0] if match[1] else rb"\\", body)
    mended = NOTHING.sub(lambda match: match[0] if match[0][:1] == b'"' else b":null", mended)
    if mended == body:
        raise first
    try:
        value = read_json(mended, notes)
    except Unreadable:
        raise first from None
    notes.add("the template is not JSON: missing values were read as null, stray backslashes as backslashes")
    return value


def is_unfilled(value: Any) -> bool:
    """Say whether a template's placeholder stands where its value should."""
    # The longer a text, the dearer the look, and no placeholder is long.
    if not isinstance(value, str) or len(value) > UNFILLED_MAX:
        return False
    text = value.strip()
    return MACRO.fullmatch(text) is not None or is_placeholder(text)


class Filled:
    """The fields of a template that were filled in, in lower case and without separators; `{"a": {"b": 1}}` is `ab`."""

    def __init__(self, body: Mapping[str, Any], notes: Notes) -> None:
        self._values: dict[str, Any] = {}
        self._unfilled: set[str] = set()
        self._notes = notes
        nested: list[tuple[str, Any]] = []
        for name, value in body.items():
            plain = plain_of(name)
            if isinstance(value, Mapping):
                nested += [(plain + plain_of(inner), one) for inner, one in value.items()]
            self._keep(plain, value)
        for plain, value in nested:
            self._keep(plain, value)
        if self._unfilled:
            notes.add(f"left unfilled by the sender: {', '.join(sorted(self._unfilled))}")

    def _keep(self, plain: str, value: Any) -> None:
        if is_unfilled(value):
            self._unfilled.add(plain)
        elif text_of(value):
            self._values.setdefault(plain, value)

    def learn(self, name: str, value: str) -> None:
        """Keep what another field says in words; what the sender names itself stays."""
        if value:
            self._values.setdefault(name, value)

    def values(self, *names: str) -> Iterator[Any]:
        """Yield what stands under these names, the best first."""
        return (self._values[name] for name in names if name in self._values)

    def first(self, *names: str) -> Any:
        """Return the best of these that is there, else None."""
        return next(self.values(*names), None)

    def text(self, limit: int, *names: str) -> str:
        """Return the best scalar of these as text."""
        scalars = (one for one in self.values(*names) if isinstance(one, str | int | float))
        return bounded(next(scalars, None), limit, names[0], self._notes).strip()

    def lacks(self, *names: str) -> bool:
        """Say whether one of these was left unfilled."""
        return not self._unfilled.isdisjoint(names)


def plain_of(name: str) -> str:
    """Return a field's name in lower case and without separators."""
    return name[:NAME_MAX].lower().translate(SEPARATORS)


def filled_in(body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields without those that were left unfilled."""
    return {name: value for name, value in body.items() if not is_unfilled(value)}
