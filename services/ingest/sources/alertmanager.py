"""Prometheus Alertmanager's webhook, version 4; older ones as far as they say the same."""

from services.ingest.signal import DeliveryFacts, ParsedSignal
from services.ingest.sources.alerts import read_alerts
from services.ingest.sources.reading import Notes, read_json


def parse(body: bytes, _: DeliveryFacts) -> list[ParsedSignal]:
    """Return a signal per alert; the status of each counts, the one at the top only says that any fires."""
    notes = Notes()
    return read_alerts(read_json(body, notes), notes)
