"""What each sender really sends. A parser takes the exact bytes and returns signals, or raises Unreadable."""

from collections.abc import Callable, Mapping
from typing import Final

from services.ingest.signal import DeliveryFacts, ParsedSignal
from services.ingest.sources import (
    alertmanager,
    azure_monitor,
    change,
    cloudevents,
    datadog,
    dynatrace,
    elastic,
    gcp_monitoring,
    generic,
    github,
    grafana,
    kubernetes,
    newrelic,
    opsgenie,
    pagerduty,
    pagerduty_events,
    sentry,
    sns,
    splunk,
    zabbix,
)

Parser = Callable[[bytes, DeliveryFacts], list[ParsedSignal]]

# Of what is configured as a source; `chat` is none, for no sender may pretend to be a person who talks to us.
PARSERS: Final[Mapping[str, Parser]] = {
    "alertmanager": alertmanager.parse,
    "azure-monitor": azure_monitor.parse,
    "change": change.parse,
    "cloudevents": cloudevents.parse,
    "datadog": datadog.parse,
    "dynatrace": dynatrace.parse,
    "elastic": elastic.parse,
    "gcp-monitoring": gcp_monitoring.parse,
    "generic": generic.parse,
    "github": github.parse,
    "grafana": grafana.parse,
    "kubernetes": kubernetes.parse,
    "newrelic": newrelic.parse,
    "opsgenie": opsgenie.parse,
    "pagerduty": pagerduty.parse,
    "pagerduty-events": pagerduty_events.parse,
    "sentry": sentry.parse,
    "sns": sns.parse,
    "splunk": splunk.parse,
    "zabbix": zabbix.parse,
}
