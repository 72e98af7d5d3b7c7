"""A parser that fails is one sender's matter: what came together with its delivery is accepted all the same."""

from opsmesh.ingest.v1 import ingest_service_pb2 as pb
from services.ingest.mapping import result_of, safe_entry_of
from services.ingest.signal import DeliveryFacts, ParsedSignal
from tests.ingest.house import alert, delivery, notification


def careless(body: bytes, facts: DeliveryFacts) -> list[ParsedSignal]:
    """Fail as a parser does that did not think of something."""
    raise KeyError(facts.source, body)


def test_what_a_parser_fails_at_is_kept_and_told_without_its_words() -> None:
    """Malformed, with the exact bytes for a redrive; the reason quotes nothing of them."""
    sent = delivery(notification(alert()))
    entry = safe_entry_of(sent, careless)
    assert result_of(entry).state == pb.DeliveryResult.STATE_MALFORMED
    assert entry.delivery.body == sent.body
    assert [one.description for one in entry.errors] == ["the parser of this source failed (KeyError)"]
