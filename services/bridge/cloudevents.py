"""CloudEvents over HTTP, what concerns who lets them in: the handshake before the first event, and content types.

A handshake may name a URL that grants it later, WebHook-Request-Callback. It is never asked for: whoever sends a
request must not make us connect anywhere.
"""

import re
from typing import Final

from starlette.datastructures import Headers
from starlette.responses import Response

from services.bridge.answers import AnswerError
from services.bridge.senders.doors import Door

PARSER: Final = "cloudevents"
METHODS: Final = {"Allow": "POST, PUT, OPTIONS"}
ORIGIN: Final = "webhook-request-origin"
BINARY: Final = "ce-"
UNBOUNDED: Final = "*"
TYPE: Final = re.compile(r"[a-z0-9!#$&^_.+-]{1,127}/[a-z0-9!#$&^_.+-]{1,127}")
FORMATS: Final = frozenset({"application/cloudevents+json", "application/cloudevents-batch+json"})


def handshake(door: Door, headers: Headers, per_minute: int) -> Response:
    """Grant a sender's question whether it may send, if its origin is on the source's list; else AnswerError.

    `per_minute` is what it may send then; 0 is no limit. Only the question of an origin on the list is answered with
    that origin, so what somebody else writes there comes back to nobody.
    """
    origins = headers.getlist(ORIGIN)
    if not origins:
        raise AnswerError(405, "only a handshake of CloudEvents asks so", METHODS)
    if len(origins) != 1 or origins[0].strip().lower() not in door.origins:
        raise AnswerError(403, "this origin may not send; see `webhook_origins` in sources.yaml")
    rate = str(per_minute) if per_minute else UNBOUNDED
    return Response(headers=METHODS | {"WebHook-Allowed-Origin": origins[0].strip(), "WebHook-Allowed-Rate": rate})


def is_understood(door: Door, headers: Headers) -> bool:
    """Say whether what a source sends can be an event at all: other sources than this one are not asked.

    A sender without a content type is taken for one of JSON, as everywhere here.
    """
    given = headers.get("content-type", "").partition(";")[0].strip().lower()
    if door.parser != PARSER or not given:
        return True
    if not TYPE.fullmatch(given):
        return False
    if given.startswith("application/cloudevents"):
        return given in FORMATS
    return given.endswith(("/json", "+json")) or any(name.startswith(BINARY) for name in headers)
