"""What `opsmesh up` tells the outside: endpoints.json, and the webhook sources with their generated secrets."""

import base64
import json
from pathlib import Path
from typing import Any

from opsmesh.config.v1 import sources_pb2
from services.local.certs import PEOPLE
from services.local.files import LocalError, ensure_secret, write_private
from services.local.layout import LOOPBACK, SERVICES, Mesh, join
from services.local.postgres import READER
from services.local.programs import Stores
from services.local.valkey import OBSERVER
from services.mesh.config import ConfigError, load_yaml


def read_sources(config: Path) -> list[sources_pb2.Source]:
    """Read CONFIG/sources.yaml; raises LocalError with file, line and what is wrong."""
    path = config / "sources.yaml"
    if not path.exists():
        raise LocalError(f"{path} does not exist; --config wants a folder like the shipped deploy/")
    try:
        return list(load_yaml(path, sources_pb2.Sources).sources)
    except ConfigError as error:
        raise LocalError(str(error)) from error


def ensure_webhooks(mesh: Mesh) -> dict[str, dict[str, str]]:
    """Generate the missing secrets of all sources; return how to post to each."""
    return {source.source: _webhook(mesh, source) for source in read_sources(mesh.config)}


def _webhook(mesh: Mesh, source: sources_pb2.Source) -> dict[str, str]:
    auth = source.WhichOneof("auth") or "none"
    url = f"{mesh.bridge_url}/v1/webhooks/{source.source}"
    if auth == "none":
        return {"url": url, "auth": auth, "header": "", "secret_file": ""}
    settings = getattr(source, auth)
    secret_file = mesh.webhook_secrets / (settings.secret_file or source.source)
    # sources may share a file, so what is there wins over what this kind would generate
    ensure_secret(secret_file, prefix=f"{source.source}:" if auth == "basic" else "")
    header = settings.header if auth == "header" else "Authorization"
    return {"url": url, "auth": auth, "header": header, "secret_file": str(secret_file)}


def webhook_headers(hook: dict[str, str]) -> dict[str, str]:
    """Return the headers with which a sender proves itself at HOOK, an entry of endpoints.json's `webhooks`."""
    if hook["auth"] == "none":
        return {}
    secret = Path(hook["secret_file"]).read_text(encoding="utf-8").splitlines()[0].strip()
    if hook["auth"] == "bearer":
        return {"Authorization": f"Bearer {secret}"}
    if hook["auth"] == "basic":
        return {"Authorization": "Basic " + base64.b64encode(secret.encode()).decode()}
    return {hook["header"]: secret}


def describe(mesh: Mesh, webhooks: dict[str, dict[str, str]]) -> dict[str, Any]:
    """Return the content of endpoints.json; it holds store passwords (read-only users), so keep it private."""
    stores = Stores.of(mesh)
    people_and_services = (*PEOPLE, *SERVICES)
    leafs = {
        name: {"cert": str(mesh.pki / f"{name}.pem"), "key": str(mesh.pki / f"{name}.key")}
        for name in people_and_services
    }
    return {
        "bridge": mesh.bridge_url,
        "services": mesh.peers(),
        "metrics": {name: f"http://{join(LOOPBACK, mesh.metrics_port(name))}/metrics" for name in SERVICES},
        "tls": {"ca": str(mesh.pki / "ca.pem"), **leafs},
        "postgres": stores.postgres.dsn(READER),
        "redis": stores.valkey.url(OBSERVER),
        "temporal": stores.temporal.address,
        "webhooks": webhooks,
    }


def write(mesh: Mesh, content: dict[str, Any]) -> None:
    """Publish endpoints.json (mode 0600): it appears whole, once everything is healthy."""
    write_private(mesh.endpoints_file, json.dumps(content, indent=2).encode())
