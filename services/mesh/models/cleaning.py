"""Text without what people do not see and machines might obey: control, invisible and markup characters, cut to size.

What is taken out is what a terminal, a browser, a chat window or a model's own template would act on. What stays is
meant to be read: words, numbers, line ends. Patterns run in RE2, because the text is an attacker's. Nothing is decoded
(no base64, no HTML entities): what is not decoded cannot turn into something else here.
"""

import re
import unicodedata
from typing import Any, Final

import re2

from services.mesh.models.redaction import LEFT, RIGHT

_TAG_NAMES: Final = (
    "a abbr address article aside audio b base blockquote body br button canvas center code col div dl dt dd em embed "
    "fieldset font footer form frame frameset h1 h2 h3 h4 h5 h6 head header hr html i iframe img input ins label li "
    "link main map math meta nav noscript object ol optgroup option p param picture pre q s script section select "
    "small source span strike strong style sub summary sup svg table tbody td template textarea tfoot th thead title "
    "tr track tt u ul var video wbr"
)
TAGS: Final = frozenset(_TAG_NAMES.split())
# Ours alone: marks and placeholders are made of these, so no text from outside may contain them or their likes.
_RESERVED: Final = {
    **dict.fromkeys("\u27e6\u301a\u298b", "["),
    **dict.fromkeys("\u27e7\u301b\u298c", "]"),
    **dict.fromkeys("\u27e8\u3008\u2329\u276c\u2770\u29fc", "("),
    **dict.fromkeys("\u27e9\u3009\u232a\u276d\u2771\u29fd", ")"),
}
_LINE_ENDS: Final = {"\r": "\n", "\x0b": "\n", "\x0c": "\n", "\x85": "\n", "\u2028": "\n", "\u2029": "\n"}
# Blank though they are letters, marks or symbols by category.
_BLANK: Final = "\u115f\u1160\u3164\uffa0\u2800\u034f\u17b4\u17b5"
_UNSEEN: Final = frozenset({"Cc", "Cf", "Cn", "Co", "Cs"})


class _Characters(dict[int, str | None]):
    """A table for str.translate that decides about a character when it is first seen."""

    def __missing__(self, code: int) -> str | None:
        """Return what stands for a character: itself, something plainer, or nothing."""
        found = _plain(chr(code))
        self[code] = found
        return found


def _plain(character: str) -> str | None:
    """Return what stands for one character."""
    if character in "\n\t":
        return character
    if fixed := _RESERVED.get(character) or _LINE_ENDS.get(character):
        return fixed
    code = ord(character)
    if 0xD800 <= code <= 0xDFFF:  # noqa: PLR2004  the halves of surrogate pairs
        return "\ufffd"
    # Variation selectors carry bytes unseen; Mongolian has its own.
    selectors = 0xFE00 <= code <= 0xFE0F or 0xE0100 <= code <= 0xE01EF or 0x180B <= code <= 0x180F  # noqa: PLR2004
    if selectors or character in _BLANK or unicodedata.category(character) in _UNSEEN:
        return None
    return " " if unicodedata.category(character) in {"Zs", "Zl", "Zp"} else character


_CHARACTERS: Final = _Characters()
# Each branch goes forward only, so Python's own engine is linear here, and much faster for many matches.
_ESCAPES: Final = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?"
    r"|(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x9c\n]*(?:\x07|\x1b\\|\x9c)?"
    r"|\x1b[ -/]*[0-~]?"
)


def characters(text: str) -> str:
    """Return a text without terminal sequences, control, zero-width, bidi, tag and private characters."""
    if "\x1b" in text or re.search("[\x80-\x9f]", text):
        text = _ESCAPES.sub("", text)
    text = text.replace("\r\n", "\n").translate(_CHARACTERS)
    return text if text.isascii() else str(_STACKED.sub(r"\1", text))


_STACKED: Final = re2.compile(r"(\pM{3})\pM+")
_URL: Final = re2.compile(
    r"(?i)^\s*<?(?:[a-z][a-z0-9+.-]*://|(?:mailto|tel|data|file|javascript|vbscript|sms):|[/#?.])"
)
_HOST: Final = re2.compile(r"^[^:/]{1,20}://(?:[^/?#@]*@)?([A-Za-z0-9.:-]+)")


def _tag(match: Any) -> str:
    """Take out a tag of HTML; what only looks like one (`<module>`, `<init>`) loses its brackets."""
    name = re.match(r"</?([A-Za-z][A-Za-z0-9]*)", match[0])
    if match[0][1] in "!?" or (name and name[1].lower() in TAGS):
        return " "
    inner = str(match[0])[1:-1]
    return LEFT + inner.replace("|", " ") + RIGHT


def _noted(match: Any) -> str:
    """Return what stood between two brackets between two notes' brackets: RE2's templates know ASCII only."""
    return f"{LEFT}{match[1]}{RIGHT}"


def _opened(match: Any) -> str:
    """Return an opening that opens nothing."""
    return f"{LEFT}{match[1]}"


def _closed(match: Any) -> str:
    """Return a closing that closes nothing."""
    return f"{match[1]}{RIGHT}"


def _image(match: Any) -> str:
    """Return an image as its alternative text: fetching it would tell somebody something."""
    return f"(image: {match[1]})"


def _link(match: Any) -> str:
    """Return a link as its text and its host; `[ERROR](main.c)` is no link and stays, apart."""
    if not _URL.search(match[2]):
        return f"[{match[1]}] ({match[2]})"
    host = _HOST.search(match[2].strip().lstrip("<"))
    return f"{match[1]} (link: {host[1] if host else 'local'})"


_SPECIAL: Final = "INST|SYS|TOOL|TOOLS|TOOL_CALLS|TOOL_RESULTS|TOOL_CONTENT|PROMPT"
# Some templates write their tokens with the full-width bar.
_BAR: Final = r"[|\x{FF5C}]"
_MARKUP: Final[tuple[tuple[Any, Any], ...]] = (
    (re2.compile(r"(?s)<!--.*?-->"), " "),
    (re2.compile(r"(?is)<(?:script|style)\b[^>]*>.*?</(?:script|style)\s*>"), " "),
    # The control tokens of chat templates, which some servers read wherever they stand.
    (re2.compile(rf"<{_BAR}([^<>\n]*){_BAR}>"), _noted),
    (re2.compile(rf"<({_BAR})"), _opened),
    (re2.compile(rf"({_BAR})>"), _closed),
    (re2.compile(rf"\[(/?[A-Z_]*(?:{_SPECIAL})[A-Z_]*)\]"), r"(\1)"),
    (re2.compile(r"</?[A-Za-z][^<>]*>|<[!?][^<>]*>"), _tag),
    (re2.compile(r"!\[([^\[\]]*)\]\([^()]*\)"), _image),
    (re2.compile(r"!\[([^\[\]]*)\]\s?\[[^\[\]]*\]"), _image),
    (re2.compile(r"\[([^\[\]]*)\]\(([^()]*)\)"), _link),
    # What is not closed, or has brackets in its address, is taken apart.
    (re2.compile(r"<([A-Za-z/!?])"), _opened),
    (re2.compile(r"\]\("), "] ("),
    (re2.compile(r"(?m)^( {0,3})\[([^\[\]\n]+)\]:[ \t]{0,8}\S*(?:/|\.)[^\n]*$"), r"\1(\2: link)"),
    (re2.compile(r"(?i)\bdata:[a-z]{1,20}/[a-z0-9.+-]+(?:;[a-z0-9=-]+){0,3},[^\s\"')]{8,}"), "(data)"),
    (re2.compile(r"(?i)\b(javascript|vbscript):"), r"\1 "),
    (re2.compile("```+"), "'''"),
    (re2.compile(r"[ \t]{32,}"), " "),
    (re2.compile(r"\n[ \t\n]{3,}"), "\n\n\n"),
)


def markup(text: str) -> str:
    """Return a text without HTML, Markdown images and links, and template tokens: one pass of it."""
    for pattern, replacement in _MARKUP:
        text = pattern.sub(replacement, text)
    return text


def unbracketed(text: str) -> str:
    """Return a text in which nothing can be markup: for what changes however often it is cleaned."""
    return text.translate({ord("<"): LEFT, ord(">"): RIGHT, ord("["): "(", ord("]"): ")", ord("|"): "/"})
