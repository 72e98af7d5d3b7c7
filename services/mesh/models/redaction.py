"""Text without secrets, before a model or a provider's log can see it.

Every pattern runs in RE2: the text is an attacker's, and time must stay linear in it. A value that a name gives away
(`password=`, `Authorization:`) is always taken; a token that nothing gives away only when it looks like randomness and
like nothing operators need (commit ids, digests, UUIDs, pod names and paths stay).
"""

import math
import re
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

import re2

LEFT, RIGHT = "\u2039", "\u203a"
RANDOM_LENGTH_MIN: Final = 28
RANDOM_BITS_MIN: Final = 3.8
CLASS_MIN: Final = 2
WORD_MIN: Final = 7
_NAMES: Final = (
    r"password|passwd|passphrase|pwd|secret|token|api[_-]?key|access[_-]?key|private[_-]?key|signing[_-]?key"
    r"|encryption[_-]?key|account[_-]?key|client[_-]?key|auth[_-]?key|credentials?|signature|session[_-]?id"
)
_NAME: Final = (
    rf"[A-Za-z0-9_.-]*?(?:{_NAMES})(?:[_-]?(?:key|hash|value))?(?:[_.-][A-Za-z0-9_.-]*)?"
    r"|x-amz-[a-z-]+|[A-Za-z0-9_.-]*[_.-]pass"
)
_VALUE: Final = r'[bu]?"(?:[^"\\\n]|\\.)*"?|[bu]?\'(?:[^\'\\\n]|\\.)*\'?|[^\s"\'&\x{2039}\x{203A}]+'
_PREFIXES: Final = (
    r"\b(?:(?:AKIA|ASIA|AROA|AIDA)[A-Z0-9]{16}"
    r"|gh[oprsu]_[A-Za-z0-9]{20,}|github_pat_[A-Za-z0-9_]{20,}|glpat-[A-Za-z0-9_-]{16,}|xox[a-z]-[A-Za-z0-9-]{10,}"
    r"|(?:sk|rk|pk)[-_](?:live|test|proj|ant|or)[-_][A-Za-z0-9_-]{12,}|sk-[A-Za-z0-9_-]{20,}|AIza[0-9A-Za-z_-]{30,}"
    r"|ya29\.[0-9A-Za-z_-]{20,}|npm_[A-Za-z0-9]{30,}|pypi-[A-Za-z0-9_-]{30,}|hf_[A-Za-z0-9]{20,}"
    r"|dop_v1_[a-f0-9]{40,}|SG\.[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}|hv[sb]\.[A-Za-z0-9_-]{20,}"
    r"|AGE-SECRET-KEY-1[A-Z0-9]{20,})"
)
# What says nothing about a secret: where it is, how long it lives, that it is missing.
_HARMLESS_ENDS: Final = ("file", "path", "url", "uri", "name", "ttl", "expiry", "count", "length", "type", "version")
_HARMLESS_VALUES: Final = frozenset(
    {
        "true",
        "false",
        "null",
        "none",
        "nil",
        "yes",
        "no",
        "missing",
        "invalid",
        "filtered",
        "redacted",
        "masked",
        "hidden",
        "removed",
    }
)
_PARSED: Final = frozenset({"token", "signature"})
_WORD_MAX: Final = 16
_CLOSING: Final = ")]}>.,;"
_OTHER: Final = re.compile(r"([A-Za-z0-9_.-]+)([=:]+)(.*)", re.DOTALL)
_GIVES_AWAY: Final = re.compile(_NAMES, re.IGNORECASE)
_UUID: Final = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")

Count = Counter[str]


def redact(text: str) -> tuple[str, Count]:
    """Return a text with a note `redacted:kind` in place of each secret, and how many of which kind there were."""
    found: Count = Counter()
    for pattern, replace in _STEPS:
        text = pattern.sub(lambda match, replace=replace: replace(match, found), text)
    return text, found


def _note(kind: str, found: Count) -> str:
    """Count a secret and return what stands in its place."""
    found[kind] += 1
    return f"{LEFT}redacted:{kind}{RIGHT}"


def _whole(kind: str) -> Callable[[Any, Count], str]:
    """Return a step that replaces all that matched."""
    return lambda _match, found: _note(kind, found)


def _second(kind: str) -> Callable[[Any, Count], str]:
    """Return a step that keeps the first group, replaces the second and keeps the third."""
    return lambda match, found: f"{match[1]}{_note(kind, found)}{match[3]}"


def _named(match: Any, found: Count) -> str:
    """Replace the value that a name gives away."""
    name, between, value = str(match[1]), str(match[2]), str(match[3])
    # Python shows its texts as u'...' and b'...'.
    if value[1:2] in {"'", '"'} and value[0] in "buBU":
        between, value = between + value[0], value[1:]
    quote = value[0] if value[0] in "\"'" else ""
    if quote:
        ends = quote if value.endswith(quote) and len(value) > 1 else ""
        return f"{name}{between}{quote}{_value(name, value[1:].removesuffix(quote), found)}{ends}"
    whole = value.rstrip(_CLOSING)
    # `password=a,b,user=c`: what follows a comma belongs to the value unless it is a name of its own.
    first, *others = re.split(r"([,;])", whole)
    pieces = [f"{name}{between}", _value(name, first, found)]
    taken = pieces[-1] != first
    for separator, piece in zip(others[::2], others[1::2], strict=True):
        if pair := _OTHER.match(piece):
            new = _value(pair[1], pair[3], found) if _GIVES_AWAY.search(pair[1]) else pair[3]
            pieces += [separator, pair[1], pair[2], new]
            taken = new != pair[3]
        elif not taken:
            pieces += [separator, piece]
    return "".join(pieces) + value[len(whole) :]


def _value(name: str, value: str, found: Count) -> str:
    """Return what stands for a value of this name; what says nothing about a secret stays."""
    if name.lower().endswith(_HARMLESS_ENDS) or value.strip("[(<").lower() in _HARMLESS_VALUES:
        return value
    if not value.strip("*.,;:)]}{[("):
        return value
    # "unexpected token: end" is about a parser.
    word = name.lower() in _PARSED and value.isalpha() and value.islower() and len(value) <= _WORD_MAX
    return value if word or value.startswith(f"{LEFT}redacted") else _note("named", found)


def _told(match: Any, found: Count) -> str:
    """Replace "the password is X", unless X is a word such as "incorrect"."""
    return f"{match[1]}{_note('named', found)}" if re.search(r"[0-9]|[^\w.,;:!?]", match[2]) else str(match[0])


def _scheme(match: Any, found: Count) -> str:
    """Replace the token after an authentication scheme, unless it is a word such as "authentication"."""
    return f"{match[1]}{_note('bearer', found)}" if re.search(r"[0-9._~+/=-]", match[2]) else str(match[0])


def _random(match: Any, found: Count) -> str:
    """Replace a token that looks like randomness."""
    return _note("random", found) if looks_random(match[0]) else str(match[0])


def looks_random(token: str) -> bool:
    """Say whether a token has the mix of a random base64 string: conservative, identifiers of operators stay."""
    plain = token.strip("=")
    if len(plain) < RANDOM_LENGTH_MIN or _UUID.search(plain) or re.fullmatch(r"[0-9a-fA-F-]+", plain):
        return False
    classes = (r"[A-Z]", r"[a-z]", r"[0-9]")
    if any(len(re.findall(one, plain)) < CLASS_MIN for one in classes) or re.search(rf"[a-z]{{{WORD_MIN},}}", plain):
        return False
    bits = -sum(count / len(plain) * math.log2(count / len(plain)) for count in Counter(plain).values())
    return bits >= RANDOM_BITS_MIN


_PAIR: Final = re2.compile(rf"(?i)({_NAME})([\"']?\s{{0,3}}(?:=>|:=|=|:)\s{{0,3}})({_VALUE})")
_NOTE: Final = r"\x{2039}\x{203A}"
_PEM: Final = r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----.*?(?:-----END [A-Z0-9 ]+-----|\z)"
_USERINFO: Final = rf"([A-Za-z][A-Za-z0-9+.-]*://[^\s/:@\"'{_NOTE}]*:)([^\s/\"'{_NOTE}]+)(@)"
_HEADER: Final = rf"((?:authorization|cookie)[\"']?\s{{0,3}}[:=]\s{{0,3}}[\"']?)([^\s\"'{_NOTE}][^\n\"'{_NOTE}]*)()"
_FLAG: Final = rf"(\s--?[a-z0-9-]*?(?:{_NAMES})\s{{1,4}}[\"']?)([^\s\"'{_NOTE}-][^\s\"'{_NOTE}]*)()"
_SAID: Final = (
    r"(\b(?:password|passphrase|passwd|secret|token|pin)\s{1,4}(?:is|was|:)\s{1,4}[\"']?)"
    rf"([^\s\"'{_NOTE}]{{4,}})"
)
_STEPS: Final[tuple[tuple[Any, Callable[[Any, Count], str]], ...]] = (
    (re2.compile(rf"(?s){_PEM}"), _whole("private-key")),
    (re2.compile(r"\beyJ[A-Za-z0-9_-]{6,}\.[A-Za-z0-9_-]{4,}(?:\.[A-Za-z0-9_-]*){0,3}"), _whole("jwt")),
    (re2.compile(_USERINFO), _second("url-password")),
    (re2.compile(r"(https://hooks\.[a-z.]+/[a-z]{1,20}/)([A-Za-z0-9/_-]{8,})()"), _second("webhook")),
    (re2.compile(_PREFIXES), _whole("key")),
    (re2.compile(rf"(?i){_HEADER}"), _second("header")),
    (re2.compile(r"(?i)\b((?:bearer|basic|digest|negotiate)\s{1,4})([A-Za-z0-9._~+/=-]{8,})"), _scheme),
    (re2.compile(rf"(?i)(<[A-Za-z0-9_.:-]*?(?:{_NAMES})>)([^<>{_NOTE}]+)(</)"), _second("named")),
    (_PAIR, _named),
    (re2.compile(rf"(?i)([?&;](?:sig|sas|key|code|auth)=)([^&\s\"'{_NOTE}]+)()"), _second("named")),
    (re2.compile(rf"(?i){_FLAG}"), _second("named")),
    (re2.compile(rf"(?i)(\s-u\s+[^\s:\"'{_NOTE}]+:|\bsshpass\s+-p\s*)([^\s\"'{_NOTE}]+)()"), _second("named")),
    (re2.compile(rf"(?i)(\bidentified\s+by\s+')([^'{_NOTE}]+)(')"), _second("named")),
    (re2.compile(rf"(?i)(\b(?:pass|otp|pin)=[\"']?)([^\s\"'&;,{_NOTE}]+)()"), _second("named")),
    (re2.compile(rf"(?i){_SAID}"), _told),
    (re2.compile(rf"[A-Za-z0-9+/_-]{{{RANDOM_LENGTH_MIN},}}={{0,2}}"), _random),
)
