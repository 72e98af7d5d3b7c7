"""The names of any JSON, where a name is one thing for some and another for others."""

import json

from services.ingest.signal import DeliveryFacts
from services.ingest.sources.generic import parse


def key(**body: str) -> str:
    """Return the key of a body that has none of its own."""
    (signal,) = parse(json.dumps({"host": "db-1", **body}).encode(), DeliveryFacts("generic"))
    return signal.dedup_key


def test_what_a_sensor_measured_is_no_part_of_a_named_rules_key() -> None:
    """With a rule's name the trouble is known without it; alone it tells one trouble of a host from another."""
    hot, cool = (key(rule="heat", sensor=one, status=word) for one, word in (("91 C (hot)", "down"), ("40 C", "up")))
    assert hot == cool
    assert key(sensor="fan", status="down") == key(sensor="fan", status="up") != key(sensor="heat", status="down")
