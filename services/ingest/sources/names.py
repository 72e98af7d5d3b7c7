"""The names under which most senders say a thing: lower case, no separators (`alertId`, `alert_id`), the best first."""

from collections.abc import Mapping
from typing import Final

from services.ingest.signal import Rel

STATUS: Final = (
    "status",
    "state",
    "alertstatus",
    "alertstate",
    "currentstate",
    "newstate",
    "eventaction",
    "eventtype",
    "action",
    "notificationtype",
    "alerttypefriendlyname",
)
SEVERITY: Final = ("severity", "priority", "level", "criticality", "urgency", "sev")
KEYS: Final = (
    "dedupkey",
    "fingerprint",
    "incidentkey",
    "alertkey",
    "alertid",
    "incidentid",
    "monitorid",
    "checkid",
    "triggerid",
    "eventdefinitionid",
    "ruleid",
    "alias",
    "id",
)
RULE: Final = (
    "alertname",
    "rulename",
    "alertrule",
    "rule",
    "monitorname",
    "monitorfriendlyname",
    "eventdefinitiontitle",
    "checkname",
    "check",
    "name",
)
# A sensor is a name for some, and for others what it measured.
TITLES: Final = ("sensor", "title", "summary", "subject")
# What says why, and not what: with a rule's name before it.
REASONS: Final = ("reason", "incidentreason", "cause", "alertdetails")
SUMMARY: Final = (
    "summary",
    "title",
    "subject",
    "message",
    "text",
    "msg",
    "description",
    *REASONS,
    *RULE,
    "event",
    "info",
    "resultdescription",
    "serviceoutput",
    "hostoutput",
)
DESCRIPTION: Final = ("description", "details", "message", "text", "body", "resultdescription")
START: Final = (
    "startsat",
    "startedat",
    "starttime",
    "startdate",
    "incidenttimeiso",
    "triggeredat",
    "firedat",
    "openedat",
)
END: Final = ("endsat", "endedat", "endtime", "resolvedat", "closedat", "canceldate")
TIME: Final = ("eventtime", "timestamp", "time", "date", "updatedat", "updatedate", "ts", "when")
LABELS: Final = ("labels", "tags", "attributes", "dimensions")
ANNOTATIONS: Final = ("annotations", "customdetails", "details", "values", "fields")
LINKS: Final[Mapping[Rel, tuple[str, ...]]] = {
    Rel.SOURCE: ("url", "link", "clienturl", "htmlurl", "alerturl", "externalurl"),
    Rel.GENERATOR: ("generatorurl",),
    Rel.RUNBOOK: ("runbookurl", "runbook"),
    Rel.DASHBOARD: ("dashboardurl", "monitordashboardlink"),
    Rel.IMAGE: ("imageurl",),
}
# Objects whose fields count as if they stood at the top, where these do not say it themselves.
CONTAINERS: Final = ("payload", "alert", "incident", "event", "data", "check", "checkresult", "monitor", "heartbeat")
# What names the thing and stays the same from one message about it to the next.
IDENTITY: Final = (
    *RULE,
    "service",
    "servicename",
    "servicedesc",
    "servicedescription",
    "host",
    "hostname",
    "instance",
    "device",
    "resource",
    "resourceid",
    "resourcename",
)
# What differs from one message about a thing to the next: no part of a key that is made of a whole body.
VOLATILE: Final = frozenset(
    {
        *STATUS,
        *SEVERITY,
        *START,
        *END,
        *TIME,
        "createdat",
        "created",
        "receivedat",
        "sentat",
        "lastseen",
        "firstseen",
        "value",
        "values",
        "currentvalue",
        "metricvalue",
        "metric",
        "count",
        "duration",
        "elapsed",
        "sequence",
        "seq",
        "requestid",
        "deliveryid",
        "eventid",
        "messageid",
        "uuid",
        "nonce",
        "attempt",
        "retry",
    }
)
VOLATILE_ENDINGS: Final = ("timestamp", "time", "timems", "timeiso", "duration")
# What a batch says once for all of its alerts.
SHARED: Final = frozenset({*STATUS, *SEVERITY, "env", "environment", "cluster", "region", "team"})
