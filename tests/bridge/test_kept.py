"""What leaves the bridge of a request's headers."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from services.bridge.kept import NAME_MAX, PAIRS_MAX, TOTAL_MAX, VALUE_MAX, kept_headers
from tests.bridge.house import BEARER, MemoryIngest, running, write_config


def test_only_what_says_what_the_body_is() -> None:
    """No credential, cookie or signature goes on, whatever its case."""
    sent = {
        "Authorization": "Bearer x",
        "Cookie": "a=b",
        "X-Hub-Signature-256": "sha256=00",
        "X-GitHub-Event": "ping",
        "ce-id": "A-1",
        "x-amz-sns-message-type": "Notification",
    }
    kept = {"x-github-event": "ping", "ce-id": "A-1", "x-amz-sns-message-type": "Notification"}
    assert kept_headers(sent) == kept


def test_the_header_that_proves_the_sender_stays() -> None:
    """A sender whose secret is in a header of the list gets no further with it."""
    assert kept_headers({"ce-secret": "hush", "ce-id": "1"}, "ce-secret") == {"ce-id": "1"}


def test_what_is_too_long_is_left_out_whole() -> None:
    """Half a value would say something else."""
    assert kept_headers({"ce-id": "x" * (VALUE_MAX + 1), "ce-type": "t"}) == {"ce-type": "t"}


@given(st.dictionaries(st.text(max_size=80).map(lambda text: f"ce-{text}"), st.text(max_size=1200), max_size=60))
def test_bounds_hold(headers: dict[str, str]) -> None:
    """Whatever the sender says, what goes on is small."""
    kept = kept_headers(headers)
    assert len(kept) <= PAIRS_MAX
    assert sum(len(name) + len(value) for name, value in kept.items()) <= TOTAL_MAX
    assert all(len(name) <= NAME_MAX and 0 < len(value) <= VALUE_MAX for name, value in kept.items())


async def test_a_delivery_carries_them(tmp_path: Path) -> None:
    """Over HTTP: what is kept arrives at ingest, the secret does not."""
    ingest = MemoryIngest()
    async with running(write_config(tmp_path), ingest) as bridge:
        await bridge.post(b"{}", headers={**BEARER, "Ce-Id": "A-1", "Cookie": "x"})
    assert [dict(one.delivery.headers) for one in ingest.entries] == [{"ce-id": "A-1"}]
