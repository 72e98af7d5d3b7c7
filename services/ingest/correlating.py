"""deploy/correlation.yaml as the domain's rules."""

from datetime import timedelta
from pathlib import Path
from typing import Final

from google.protobuf.duration_pb2 import Duration

from opsmesh.config.v1 import correlation_pb2
from services.ingest.correlation import OCCURRENCE, Correlation, Grouping, Rule, problems
from services.ingest.flapping import USUAL, Flapping
from services.mesh.config import load_yaml
from services.mesh.errors import BootError

FILE: Final = "correlation.yaml"


def correlation_of(message: correlation_pb2.Correlation) -> Correlation:
    """Return a file as rules."""
    usual = Grouping(flapping=_flapping(message.flapping, USUAL), occurrence=_occurrence(message, OCCURRENCE))
    rules = [
        Rule(one.rule_id, tuple(one.by), dict(one.equals), _grouping(one.grouping, usual)) for one in message.rules
    ]
    return Correlation(tuple(rules), _grouping(message.otherwise, usual))


def load_correlation(config: Path) -> Correlation:
    """Read the rules of a configuration folder; none without a file. A BootError says what is wrong."""
    path = config / FILE
    if not path.exists():
        return Correlation()
    found = correlation_of(load_yaml(path, correlation_pb2.Correlation))
    if wrong := problems(found.rules):
        said = "; ".join(f"{where}: {description}" for where, description in wrong)
        raise BootError(f"{path}: {said}. NEXT: opsmesh check")
    return found


def _grouping(message: correlation_pb2.Grouping, usual: Grouping) -> Grouping:
    return Grouping(
        debounce=_delta(message.debounce_duration) if message.HasField("debounce_duration") else None,
        max_alerts=message.max_alerts,
        max_age=_delta(message.max_age_duration),
        reopen=_delta(message.reopen_duration),
        flapping=_flapping(message.flapping, usual.flapping),
        occurrence=_occurrence(message, usual.occurrence),
    )


def _occurrence(message: correlation_pb2.Correlation | correlation_pb2.Grouping, usual: timedelta) -> timedelta:
    """Return after which silence an occurrence is over; zero, which is never, is something that a file may say."""
    return _delta(message.occurrence_duration) if message.HasField("occurrence_duration") else usual


def _flapping(message: correlation_pb2.Flapping, usual: Flapping) -> Flapping:
    """Return what flapping is; what a file does not say is as usual."""
    return Flapping(
        changes=message.change_count if message.HasField("change_count") else usual.changes,
        window=_delta(message.window_duration) or usual.window,
        calm=_delta(message.calm_duration) or usual.calm,
    )


def _delta(duration: Duration) -> timedelta:
    return timedelta(seconds=duration.seconds, microseconds=duration.nanos // 1000)
