"""What senders are told, as HTTP: the mesh's own words, and those of PagerDuty's Events API for its clients."""

from collections.abc import Iterable, Mapping, Sequence

import orjson
from starlette.responses import JSONResponse, Response

from opsmesh.ingest.v1 import ingest_service_pb2 as ingest
from services.bridge.senders import events
from services.bridge.senders.doors import Door
from services.bridge.senders.proof import Proof

EVENTS = "pagerduty-events"
JSON = "application/json"


class AnswerError(Exception):
    """The sender is answered with a status other than 202, a small text and headers."""

    def __init__(self, status: int, text: str, headers: Mapping[str, str] | None = None) -> None:
        self.status, self.text, self.headers = status, text, dict(headers or {})
        super().__init__(text)

    @property
    def response(self) -> Response:
        """Return it as HTTP."""
        return JSONResponse({"error": self.text}, self.status, headers=self.headers)


def answer_to(result: ingest.DeliveryResult, door: Door, proof: Proof) -> Response:
    """Turn ingest's answer into HTTP. Raises AnswerError."""
    malformed = result.state == ingest.DeliveryResult.STATE_MALFORMED
    if result.state == ingest.DeliveryResult.STATE_ACCEPTED or (malformed and door.accept_malformed):
        accepted: dict[str, object] = {"results": _each(result)}
        if door.parser == EVENTS and result.dedup_key:
            accepted = events.SUCCESS | {"dedup_key": result.dedup_key} | accepted
        return Response(orjson.dumps(accepted), 202, media_type=JSON)
    if malformed and proof.in_body:
        return invalid([f"'{one.field}' {one.description}" for one in result.errors])
    if malformed:
        return JSONResponse({"errors": _errors(result.errors)}, 422)
    raise AnswerError(404, "no parser understands this source; see `parser` in sources.yaml")


def _each(result: ingest.DeliveryResult) -> list[dict[str, object]]:
    """Return an answer for each alert in the order of the delivery: the id of its signal, or why it has none."""
    answers: list[dict[str, object]] = [{"signal_id": one} for one in result.signal_ids]
    for one in result.left_out:
        answers.insert(one.index, {"errors": _errors([one.error])})
    return answers


def _errors(errors: Iterable[ingest.DeliveryError]) -> list[dict[str, str]]:
    return [{"field": one.field, "description": one.description} for one in errors]


def invalid(errors: Sequence[str]) -> Response:
    """Return what a client of the Events API is told of a body that it must not send again."""
    return JSONResponse(events.INVALID | {"errors": list(errors)}, 400)
