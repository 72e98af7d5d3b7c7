"""An Elasticsearch for tests that keeps to the contract of `_search`: it refuses every word it does not know.

https://www.elastic.co/guide/en/elasticsearch/reference/current/search-search.html; OpenSearch has the same one.
"""

import json
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from tests.gateway.web import Asked

KNOWN: Final = {"size", "timeout", "track_total_hits", "query", "_source", "sort", "search_after"}
WORDS: Final = {"query", "fields", "default_operator", "flags"}
FLAGS: Final = {"ALL", "NONE", "AND", "ESCAPE", "FUZZY", "NEAR", "NOT", "OR", "PHRASE", "PRECEDENCE", "PREFIX", "SLOP"}


class WrongError(Exception):
    """A search that Elasticsearch would refuse; `kind` is its word for why."""

    def __init__(self, kind: str, reason: str) -> None:
        self.kind = kind
        super().__init__(reason)


class Elasticsearch:
    """One index of documents; `more` is merged into its answers."""

    def __init__(self, index: str, documents: Sequence[Mapping[str, Any]]) -> None:
        self.index = index
        self.documents = list(documents)
        self.more: dict[str, Any] = {}

    def __call__(self, asked: Asked) -> tuple[int, bytes]:
        """Answer one request."""
        path, _, query = asked.path.partition("?")
        if asked.method != "POST" or path != f"/{self.index}/_search" or query != "ignore_unavailable=true":
            error = {"root_cause": [{"type": "index_not_found_exception", "reason": "no such index [x]"}]}
            return 404, json.dumps({"error": error, "status": 404}).encode()
        try:
            answer = self._search(json.loads(asked.body))
        except WrongError as wrong:
            cause = {"type": wrong.kind, "reason": str(wrong)}
            return 400, json.dumps({"error": cause | {"root_cause": [cause]}, "status": 400}).encode()
        return 200, json.dumps(answer | self.more).encode()

    def _search(self, body: dict[str, Any]) -> dict[str, Any]:
        refuse_unknown(body, KNOWN)
        if not re.fullmatch(r"\d+(ms|s)", body["timeout"]):
            raise WrongError("parsing_exception", f"failed to parse [timeout] {body['timeout']}")
        refuse_unknown(body["query"], {"bool"})
        refuse_unknown(body["query"]["bool"], {"filter"})
        filters = body["query"]["bool"]["filter"]
        found = [
            (number, one) for number, one in enumerate(self.documents) if all(holds(one, rule) for rule in filters)
        ]
        (field, how), (tie, _) = ((name, how) for one in body["sort"] for name, how in one.items())
        if how["format"] != "strict_date_optional_time_nanos" or tie != "_doc":
            raise WrongError("illegal_argument_exception", "unknown sort")
        keyed = sorted(((moment(get(one, field)), number), one) for number, one in found)
        keyed = keyed if how["order"] == "asc" else keyed[::-1]
        if "search_after" in body:
            if len(body["search_after"]) != len(body["sort"]):
                raise WrongError("illegal_argument_exception", "search_after has 1 value(s) but sort has 2")
            last = (moment(body["search_after"][0]), body["search_after"][1])
            keyed = [(key, one) for key, one in keyed if (key > last if how["order"] == "asc" else key < last)]
        hits = [
            {
                "_index": "logs-000001",
                "_id": f"id{key[1]}",
                "_source": {name: one[name] for name in one if included(name, body["_source"]["includes"])},
                "sort": [key[0].isoformat().replace("+00:00", "Z"), key[1]],
            }
            for key, one in keyed[: body["size"]]
        ]
        return {
            "took": 1,
            "timed_out": False,
            "_shards": {"total": 2, "successful": 2, "skipped": 0, "failed": 0},
            "hits": {"total": {"value": len(found), "relation": "eq"}, "max_score": None, "hits": hits},
        }


def included(name: str, wanted: Sequence[str]) -> bool:
    """Say whether a top-level field, or something in it, is wanted."""
    return any(one == name or one.startswith(f"{name}.") for one in wanted)


def refuse_unknown(found: Mapping[str, Any], known: set[str]) -> None:
    """Refuse words that nobody knows."""
    for name in found.keys() - known:
        raise WrongError("parsing_exception", f"unknown key [{name}]")


def holds(document: Mapping[str, Any], rule: Mapping[str, Any]) -> bool:
    """Say whether a document passes one filter."""
    ((kind, inner),) = rule.items()
    if kind == "range":
        ((field, between),) = inner.items()
        refuse_unknown(between, {"gte", "lt", "format"})
        return moment(between["gte"]) <= moment(get(document, field)) < moment(between["lt"])
    if kind == "term":
        ((field, wanted),) = inner.items()
        return bool(get(document, field) == wanted["value"])
    if kind == "simple_query_string":
        refuse_unknown(inner, WORDS)
        if set(inner["flags"].split("|")) - FLAGS - {"WHITESPACE"} or inner["default_operator"] != "and":
            raise WrongError("parsing_exception", "unknown flag")
        text = " ".join(str(get(document, field)) for field in inner["fields"]).casefold()
        found = re.findall(r'(-?)(?:"([^"]*)"|(\S+))', inner["query"].casefold())
        return all(((phrase or word) in text) != bool(sign) for sign, phrase, word in found)
    raise WrongError("parsing_exception", f"unknown query [{kind}]")


def get(document: Mapping[str, Any], field: str) -> Any:
    """Return a dotted field."""
    value: Any = document
    for part in field.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def moment(value: str) -> datetime:
    """Return a moment."""
    return datetime.fromisoformat(value).astimezone(UTC)
