"""Reads deploy/models.yaml: which model answers for which role, with which key, at what price, within what budgets."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from opsmesh.config.v1 import models_pb2
from services.agents.domain import Endpoint, Limit, Limits, Models, Price
from services.mesh.config import ConfigError, Problem, load_yaml
from services.mesh.errors import BootError
from services.mesh.settings import require_private

RECORDED: Final = "recorded"
SECONDS: Final = 30.0
MAX_TOKENS: Final = 2048
FILE: Final = "models.yaml"


@dataclass(slots=True)
class Source:
    """A models file and the mistakes found in it; `keys` False leaves the secrets alone (`opsmesh check`)."""

    path: Path
    keys: bool = True
    problems: list[Problem] = field(default_factory=list)

    def add(self, where: str, description: str) -> None:
        """Note a mistake; its field path is enough to find it."""
        self.problems.append(Problem(self.path, 1, where, description))


def load(path: Path) -> Models:
    """Read the file; a BootError names what is wrong, a key that others may read included."""
    source = Source(path)
    found = models_of(load_yaml(path, models_pb2.Models), source)
    if source.problems:
        raise ConfigError(source.problems)
    return found


def check(message: models_pb2.Models, path: Path) -> list[tuple[str, str]]:
    """Return what bounds cannot say about a models file: (field, description). Reads no key."""
    source = Source(path, keys=False)
    models_of(message, source)
    return [(one.field, one.description) for one in source.problems]


def replayed(message: models_pb2.Models, path: Path) -> set[Path]:
    """Return the folders of recordings that a models file replays."""
    return {
        path.resolve().parent / one.recordings_folder
        for role in message.roles.values()
        for one in (role, *role.fallbacks)
        if one.model == RECORDED and one.recordings_folder
    }


def models_of(message: models_pb2.Models, source: Source) -> Models:
    """Return the models; relative paths start at the file's folder."""
    roles = {}
    for name, role in sorted(message.roles.items()):
        where = f"roles.{name}"
        found = [_endpoint(role, source, where)]
        for index, fallback in enumerate(role.fallbacks):
            inner = f"{where}.fallbacks[{index}]"
            if fallback.fallbacks:
                source.add(f"{inner}.fallbacks", "a fallback has no fallbacks of its own: list them after it")
            found.append(_endpoint(fallback, source, inner))
        roles[name] = tuple(found)
    defaults, budgets = Limits(), message.budgets
    limits = Limits(
        incident=_limit(budgets.incident, defaults.incident),
        day=_limit(budgets.day, defaults.day),
        requester=_limit(budgets.requester, defaults.requester),
    )
    return Models(roles, limits)


def endpoints(models: Models) -> Iterator[Endpoint]:
    """Yield every model of every role."""
    for chosen in models.roles.values():
        yield from chosen


def _limit(message: models_pb2.ModelBudget, default: Limit) -> Limit:
    """Return one budget; what is not said is the built-in limit, never none."""
    return Limit(
        message.tokens if message.HasField("tokens") else default.tokens,
        message.cost_micros if message.HasField("cost_micros") else default.cost_micros,
    )


def _endpoint(role: models_pb2.ModelRole, source: Source, where: str) -> Endpoint:
    """Return one model."""
    folder = source.path.resolve().parent
    recordings = str(folder / role.recordings_folder) if role.recordings_folder else ""
    replayed = role.model == RECORDED
    if replayed and not recordings:
        source.add(f"{where}.recordings_folder", "the model `recorded` needs the folder of its exchanges")
    elif replayed and not Path(recordings).is_dir():
        source.add(f"{where}.recordings_folder", f"there is no folder {recordings}")
    if replayed and (role.api_base or role.api_key_file):
        source.add(where, "the model `recorded` asks nobody: it takes no api_base and no api_key_file")
    key = ""
    if role.api_key_file and source.keys:
        key = _key(folder / role.api_key_file, where)
    return Endpoint(
        model=role.model,
        provider=_provider(role),
        api_base=role.api_base,
        api_key=key,
        seconds=role.timeout or SECONDS,
        max_tokens=role.max_tokens or MAX_TOKENS,
        price=Price(role.price.input_micros, role.price.output_micros),
        native_tools=role.tool_mode != models_pb2.ModelRole.TOOL_MODE_JSON_SCHEMA,
        replays=recordings if replayed else "",
        records="" if replayed else recordings,
    )


def _provider(role: models_pb2.ModelRole) -> str:
    """Return where a model runs: the unit that fails as a whole."""
    if role.api_base:
        parts = urlsplit(role.api_base)
        return f"{parts.scheme}://{parts.netloc}"[:300]
    return role.model.partition("/")[0]


def _key(path: Path, where: str) -> str:
    """Read a key, or say what is wrong with its file."""
    require_private(path, f"{where}.api_key_file")
    try:
        key = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise BootError(
            f"{where}.api_key_file: {path} cannot be read: {error}. NEXT: write the key there and chmod 600 it"
        ) from None
    if not key:
        raise BootError(f"{where}.api_key_file: {path} is empty. NEXT: write the key there")
    return key
