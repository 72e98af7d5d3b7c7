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
    "ruleid",
    "alias",
    "id",
)
RULE: Final = ("alertname", "rulename", "alertrule", "rule", "monitorname", "checkname", "check", "name")
TITLES: Final = ("title", "summary", "subject")
SUMMARY: Final = ("summary", "title", "subject", "message", "text", "description", "reason", "incidentreason", *RULE)
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
TIME: Final = ("eventtime", "timestamp", "time", "date", "updatedat", "updatedate", "ts")
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
CONTAINERS: Final = ("payload", "alert", "incident", "event", "data", "check", "checkresult", "monitor")
# What names the thing and stays the same from one message about it to the next.
IDENTITY: Final = (*RULE, "service", "host", "hostname", "instance", "resource", "resourceid", "resourcename")
