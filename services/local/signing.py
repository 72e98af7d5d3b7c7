"""What a sender does to prove itself, for trying senders without them: written anew, not with the verifiers."""

import base64
import hashlib
import hmac
import ssl
import time
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from standardwebhooks.webhooks import Webhook

# The header that carries the proof, for endpoints.json; what is configured wins.
HEADERS = {
    "bearer": "Authorization",
    "basic": "Authorization",
    "sns": "Authorization",
    "hmac-github": "X-Hub-Signature-256",
    "hmac-pagerduty": "X-PagerDuty-Signature",
    "hmac-slack": "X-Slack-Signature",
    "hmac-sentry": "Sentry-Hook-Signature",
    "hmac-grafana": "X-Grafana-Alerting-Signature",
    "hmac-standard": "webhook-signature",
    "hmac-splunk": "X-SFX-Signature",
}
SECONDS_PREFIX = {"hmac-slack": "v0:"}
PREFIX = {"hmac-github": "sha256=", "hmac-pagerduty": "v1=", "hmac-slack": "v0="}


def proof_of(hook: Mapping[str, str], secret: str, body: bytes) -> dict[str, str]:
    """Return the headers with which a sender that has this secret sends BODY to HOOK now."""
    auth, header, now = hook["auth"], hook["header"], int(time.time())
    match auth:
        case "none" | "mtls" | "url-token":
            return {}
        case "bearer" | "basic" | "sns" | "header" | "hmac-splunk":
            return {header: _untimed(auth, secret, body)}
        case "hmac-standard":
            return _standard(secret, body, now)
    timed = {"hmac-slack": "X-Slack-Request-Timestamp"}.get(auth) or hook.get("timestamp_header", "")
    signed = f"{SECONDS_PREFIX.get(auth, '')}{now}:".encode() + body if timed else body
    made = hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest()
    return {header: PREFIX.get(auth, "") + made} | ({timed: str(now)} if timed else {})


def _untimed(auth: str, secret: str, body: bytes) -> str:
    """Return the value of the one header of a scheme that knows no time."""
    match auth:
        case "bearer":
            return f"Bearer {secret}"
        case "header":
            return secret
        case "hmac-splunk":
            return base64.b64encode(hmac.digest(secret.encode(), body, "sha256")).decode()
    return "Basic " + base64.b64encode(secret.encode()).decode()


def _standard(secret: str, body: bytes, now: int) -> dict[str, str]:
    name = f"msg_{uuid.uuid4().hex}"
    made = Webhook(secret).sign(name, datetime.fromtimestamp(now, UTC), body.decode())
    return {"webhook-id": name, "webhook-timestamp": str(now), "webhook-signature": made}


def tls_of(hook: Mapping[str, str], authority: str) -> ssl.SSLContext | bool:
    """Return what httpx is to verify with: for a source of client certificates, that certificate and the mesh's CA."""
    if hook["auth"] != "mtls":
        return True
    context = ssl.create_default_context(cafile=authority)
    context.load_cert_chain(Path(hook["secret_file"]))
    return context
