"""Bad input as strangers send it, with the status and field paths that the documentation promises."""

import json
from dataclasses import dataclass, field

BIG = b'{"alerts": [], "padding": "' + b"x" * 5_000_000 + b'"}'


@dataclass(frozen=True, slots=True)
class Bad:
    """A body, and what the sender must hear."""

    body: bytes
    status: int = 422
    fields: list[str] = field(default_factory=lambda: [""])
    source: str = "alertmanager"


def _alerts(*alerts: object) -> bytes:
    return json.dumps({"version": "4", "alerts": alerts}).encode()


BAD = {
    "empty body": Bad(b""),
    "blank body": Bad(b" \r\n\t"),
    "malformed JSON": Bad(b'{"alerts": [}'),
    "cut off JSON": Bad(b'{"alerts": [{"labels": {"alertname"'),
    "five megabytes": Bad(BIG, 413),
    "deep arrays": Bad(b"[" * 100_000),
    "closed deep arrays": Bad(b"[" * 100_000 + b"]" * 100_000),
    "deep objects": Bad(b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    "deeper than the cap": Bad(b'{"alerts":' + b"[" * 65 + b"]" * 65 + b"}"),
    "only NUL": Bad(b"\x00" * 100),
    "invalid UTF-8": Bad(b"\xff\xfe\xfa"),
    "invalid UTF-8 in a label": Bad(b'{"alerts":[{"status":"firing","labels":{"alertname":"x\xff\xfe"}}]}', 202),
    "NUL in a label": Bad(b'{"alerts":[{"status":"firing","labels":{"alert\\u0000name":"x\\u0000y\x00"}}]}', 202),
    "raw control characters": Bad(b'{"alerts":[{"labels":{"alertname":"x"},"annotations":{"a":"1\n2\x01\t"}}]}', 202),
    "lone surrogate": Bad(b'{"alerts":[{"status":"firing","labels":{"alertname":"\\ud800","x":"\\udfff"}}]}', 202),
    "long integers": Bad(b'{"alerts":[{"fingerprint":' + b"9" * 5000 + b',"labels":{"n":99999999999999999999}}]}', 202),
    "trailing commas": Bad(b'{"alerts":[{"labels":{"alertname":"x",},},],}', 202),
    "byte order mark": Bad(b'\xef\xbb\xbf{"alerts":[{"labels":{"alertname":"x"}}]}', 202),
    "a string": Bad(b'"hello"'),
    "a number": Bad(b"17"),
    "null": Bad(b"null"),
    "a list": Bad(b"[]"),
    "no alerts": Bad(b"{}", fields=["alerts"]),
    "alerts of a wrong type": Bad(b'{"alerts":"all"}', fields=["alerts"]),
    "an empty list of alerts": Bad(b'{"alerts":[]}', fields=["alerts"]),
    "alerts that are none": Bad(_alerts(1, None, "x"), fields=["alerts[0]", "alerts[1]", "alerts[2]"]),
    "labels of a wrong type": Bad(_alerts({"labels": "x"}), fields=["alerts[0].labels"]),
    "no identity": Bad(_alerts({"status": "firing"}), fields=["alerts[0].labels"]),
    "one good alert among bad": Bad(_alerts(7, {"labels": {"alertname": "x"}}), 202),
    "all types wrong but one": Bad(
        _alerts({"labels": {"a": [1]}, "status": 5, "startsAt": {}, "endsAt": True, "annotations": 1}), 202
    ),
    "grafana without alerts": Bad(b'{"title":"x"}', fields=["alerts"], source="grafana"),
    "grafana, old, without a name": Bad(b'{"ruleId":0,"state":"ok"}', fields=["ruleName"], source="grafana"),
    "generic string": Bad(b'"x"', source="generic"),
    "generic empty object": Bad(b"{}", source="generic"),
    "generic empty list": Bad(b"[]", source="generic"),
    "generic list of scalars": Bad(b"[1,2]", fields=["[0]", "[1]"], source="generic"),
    "generic form": Bad(b"payload=%7B%7D", source="generic"),
    "generic not a number": Bad(b'{"value":NaN,"name":"x"}', 202, source="generic"),
}
