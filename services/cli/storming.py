"""A storm to try with: many alerts of few causes, as a pair of Alertmanagers might tell of them."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from services.cli.posting import Posting

ZERO: Final = "0001-01-01T00:00:00Z"


@dataclass(frozen=True, slots=True)
class Storm:
    """`alerts` alerts of `causes` causes in notifications of `batch`; every cause is in every part of it."""

    alerts: int
    causes: int
    batch: int
    source: str
    severity: str
    started: datetime = field(default_factory=lambda: datetime.now(UTC))

    def count(self, *, resolve: bool) -> int:
        """Return how many notifications there are."""
        return -(-self.alerts // self.batch) * (1 + resolve)

    def postings(self, *, resolve: bool) -> Iterator[Posting]:
        """Yield the notifications; with `resolve` a second one of each that says that its alerts are over."""
        for over in (False, True) if resolve else (False,):
            for first in range(0, self.alerts, self.batch):
                numbers = range(first, min(first + self.batch, self.alerts))
                alerts = [self._alert(one, over=over) for one in numbers]
                yield Posting(self.source, self._notification(alerts, over=over))

    def _alert(self, number: int, *, over: bool) -> dict[str, Any]:
        cause = f"storm-{number % self.causes + 1:02}"
        labels = {
            "alertname": "StormTrial",
            "service": cause,
            "env": "storm",
            "severity": self.severity,
            "replica": f"{cause}-{number}",
        }
        return {
            "status": "resolved" if over else "firing",
            "labels": labels,
            "annotations": {"summary": f"{cause} is part of a trial storm"},
            "startsAt": _stamp(self.started),
            "endsAt": _stamp(datetime.now(UTC)) if over else ZERO,
            "generatorURL": "",
            "fingerprint": hashlib.sha256(json.dumps(labels).encode()).hexdigest()[:16],
        }

    def _notification(self, alerts: list[dict[str, Any]], *, over: bool) -> bytes:
        common = {"alertname": "StormTrial", "env": "storm", "severity": self.severity}
        return json.dumps(
            {
                "version": "4",
                "groupKey": '{}:{alertname="StormTrial"}',
                "truncatedAlerts": 0,
                "status": "resolved" if over else "firing",
                "receiver": "opsmesh",
                "groupLabels": {"alertname": "StormTrial"},
                "commonLabels": common,
                "commonAnnotations": {},
                "externalURL": "http://alertmanager.example:9093",
                "alerts": alerts,
            }
        ).encode()


def _stamp(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")
