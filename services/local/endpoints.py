"""What `opsmesh up` tells the outside: endpoints.json, and the webhook sources with their generated secrets."""

import base64
import json
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from opsmesh.config.v1 import sources_pb2
from services.local.certs import PEOPLE, create_authority, issue
from services.local.files import LocalError, ensure_secret, write_private
from services.local.layout import LOOPBACK, SERVICES, Mesh, join
from services.local.postgres import READER
from services.local.programs import Stores
from services.local.signing import HEADERS, proof_of
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
    auth = (source.WhichOneof("auth") or "none").replace("_", "-")
    url = f"{mesh.bridge_url}/v1/webhooks/{source.source}"
    if auth == "none":
        return {"url": url, "auth": auth, "header": "", "secret_file": ""}
    settings = getattr(source, auth.replace("-", "_"))
    secret_file = mesh.webhook_secrets / (settings.secret_file or source.source)
    if auth == "mtls":
        url = f"{mesh.bridge_tls_url}/v1/webhooks/{source.source}"
        return {"url": url, "auth": auth, "header": "", "secret_file": str(_ensure_client(secret_file, settings.names))}
    # Who has none of the senders at hand need not know two more schemes: both take the secret in a header, too.
    if auth == "routing-key":
        auth = "bearer"
    if auth == "url-token" and settings.header:
        auth = "header"
    # sources may share a file, so what is there wins over what this kind would generate
    if auth == "hmac-standard":
        _ensure_standard(secret_file)
    else:
        ensure_secret(secret_file, prefix=f"{source.source}:" if auth in {"basic", "sns"} else "")
    if auth == "url-token":
        secret = secret_file.read_text(encoding="utf-8").strip().splitlines()[0].strip()
        return {"url": f"{url}/{secret}", "auth": auth, "header": "", "secret_file": str(secret_file)}
    header = settings.header if auth in {"header", "hmac-grafana"} else ""
    hook = {"url": url, "auth": auth, "header": header or HEADERS[auth], "secret_file": str(secret_file)}
    if auth == "hmac-grafana" and settings.timestamp_header:
        hook["timestamp_header"] = settings.timestamp_header
    return hook


def _ensure_standard(file: Path) -> None:
    """Generate a secret as Standard Webhooks spells it, the first time."""
    if not file.exists() or not file.read_text().strip():
        write_private(file, b"whsec_" + base64.b64encode(secrets.token_bytes(32)))


def _ensure_client(file: Path, names: Sequence[str]) -> Path:
    """Generate, the first time, a CA of the source's own and a certificate of it; return the file of the latter.

    Where somebody put a CA there is no key of it here: whoever has a certificate of it may send.
    """
    client = file.with_name(f"{file.name}.client.pem")
    if not file.exists():
        authority = create_authority(f"opsmesh webhooks {file.name}")
        leaf = issue(authority, [names[0] if names else f"urn:opsmesh:webhooks:{file.name}"])
        write_private(client, leaf.certificate + leaf.key)
        write_private(file, authority.pem)
    return client


def webhook_headers(hook: dict[str, str], body: bytes) -> dict[str, str]:
    """Return the headers with which a sender proves itself at HOOK, an entry of endpoints.json's `webhooks`."""
    if hook["auth"] in {"none", "mtls", "url-token"}:
        return {}
    # The first that is one: the bridge passes over empty lines, too.
    secret = Path(hook["secret_file"]).read_text(encoding="utf-8").strip().splitlines()[0].strip()
    return proof_of(hook, secret, body)


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
