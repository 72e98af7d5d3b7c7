"""What senders post in the stories: bodies as Alertmanager, Grafana and a home-made script send them."""

import hashlib
from datetime import UTC, datetime
from typing import Any

from services.local.demo import alert

ZERO = "0001-01-01T00:00:00Z"


def now() -> datetime:
    """Return the time at which a new alert starts."""
    return datetime.now(UTC)


def stamp(moment: datetime) -> str:
    """Return a time as Alertmanager writes it."""
    return moment.isoformat().replace("+00:00", "Z")


def alertmanager(
    started: datetime, *, name: str = "CheckoutDown", service: str = "checkout", env: str = "demo", over: bool = False
) -> dict[str, Any]:
    """Return a notification about one alert on a service; `over` says that it has resolved."""
    labels = {"alertname": name, "service": service, "env": env, "severity": "critical"}
    body = alert(started)
    body["groupKey"] = f'{{}}:{{alertname="{name}"}}'
    body["groupLabels"] = {"alertname": name}
    body["commonLabels"] = labels
    body["status"] = "resolved" if over else "firing"
    (one,) = body["alerts"]
    one["labels"] = labels
    one["status"] = body["status"]
    one["endsAt"] = stamp(now()) if over else ZERO
    one["fingerprint"] = hashlib.sha256("/".join(labels.values()).encode()).hexdigest()[:16]
    return body


def grafana(started: datetime, name: str) -> dict[str, Any]:
    """Return a notification of Grafana's unified alerting."""
    body = alertmanager(started, name=name, service="grafana-story")
    (one,) = body["alerts"]
    one["labels"]["grafana_folder"] = "Shop"
    one["values"] = {"A": 97.5}
    one["valueString"] = "[ var='A' labels={} value=97.5 ]"
    one["dashboardURL"] = "http://grafana.example/d/shop"
    return body | {
        "orgId": 1,
        "state": "alerting",
        "message": "**Firing**",
        "version": "1",
    }


def generic(title: str, host: str) -> dict[str, Any]:
    """Return what a script of one's own may post."""
    return {"title": title, "host": host, "severity": "warning", "status": "firing"}
