"""Where in which file a field path points: what `opsmesh check` says needs a line."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import yaml

PART: Final = re.compile(r'\.?([^.\[\]"]+)|\[(\d+)\]|\["((?:[^"\\]|\\.)*)"\]')


class Places:
    """Where an item of a merged list came from: services judge all files of a kind as one."""

    def __init__(self) -> None:
        self._items: dict[str, list[tuple[Path, str]]] = {}

    def add(self, merged: str, path: Path, listed: str, count: int) -> None:
        """Append COUNT items of one file's list to a merged list."""
        self._items.setdefault(merged, []).extend((path, f"{listed}[{index}]") for index in range(count))

    def add_file(self, merged: str, path: Path) -> None:
        """Append one item that is a whole file."""
        self._items.setdefault(merged, []).append((path, ""))

    def find(self, where: str) -> tuple[Path, str] | None:
        """Return the file and the path in it of a path in a merged list."""
        for merged, items in self._items.items():
            rest = where.removeprefix(f"{merged}[")
            index, closing, inner = rest.partition("]")
            if rest != where and closing and index.isdecimal() and int(index) < len(items):
                path, item = items[int(index)]
                return path, (item + inner).removeprefix(".")
        return None


def line_of(path: Path, where: str) -> int:
    """Return the line of a field path such as `rules[2].match.equals["team"]`, or of its longest known beginning."""
    node = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    line = 1
    for name in _parts(where):
        if isinstance(node, yaml.SequenceNode) and name.isdecimal() and int(name) < len(node.value):
            node = node.value[int(name)]
            line = node.start_mark.line + 1
        elif isinstance(node, yaml.MappingNode) and (pair := _pair(node, name)):
            line, node = pair[0].start_mark.line + 1, pair[1]
        else:
            break
    return line


def _parts(where: str) -> Iterator[str]:
    """Yield the names, indexes and keys of a field path."""
    for match in PART.finditer(where):
        yield next(part for part in match.groups() if part is not None)


def _pair(node: yaml.MappingNode, name: str) -> tuple[yaml.Node, yaml.Node] | None:
    """Return key and value of a name in a mapping."""
    return next(((key, value) for key, value in node.value if key.value == name), None)
