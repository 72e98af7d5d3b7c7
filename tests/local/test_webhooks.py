"""What `up` writes into endpoints.json is what the bridge wants to see, for every scheme."""

import time
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from starlette.datastructures import Headers

from services.bridge.senders.doors import load_doors
from services.bridge.senders.proof import Knock, Proof
from services.local import endpoints
from services.local.layout import DEFAULT_CONFIG, Mesh
from services.mesh.errors import BootError

EVERY = """
sources:
  - {source: bearer, bearer: {}}
  - {source: basic, basic: {}}
  - {source: header, header: {header: X-Own}}
  - {source: none, none: {}}
  - {source: hmac-github, hmac_github: {}}
  - {source: hmac-pagerduty, hmac_pagerduty: {}}
  - {source: hmac-slack, hmac_slack: {}}
  - {source: hmac-sentry, hmac_sentry: {}}
  - {source: hmac-grafana, hmac_grafana: {}}
  - {source: hmac-grafana-timed, hmac_grafana: {header: X-Own, timestamp_header: X-Time}}
  - {source: hmac-standard, hmac_standard: {}}
  - {source: mtls, mtls: {names: ["urn:sender:one"]}}
  - {source: hmac-splunk, hmac_splunk: {}}
  - {source: url-token, url_token: {}}
  - {source: url-token-headed, url_token: {header: X-Own}}
  - {source: routing-key, routing_key: {}}
  - {source: sns, sns: {topics: ["arn:aws:sns:eu-west-1:123456789012:alarms"]}}
"""
BODY = b'{"a": "\xc3\xa9"}'


def first_certificate(file: Path) -> bytes:
    """Return the first certificate of a PEM file as DER."""
    return x509.load_pem_x509_certificate(file.read_bytes()).public_bytes(Encoding.DER)


def is_private(file: Path) -> bool:
    """Say whether only its owner may read it."""
    return file.stat().st_mode & 0o777 == 0o600


async def proofs(state: Path, config: Path) -> dict[str, Proof | None]:
    """Prove each source with what `up` says of it."""
    mesh = Mesh(state, config)
    hooks = endpoints.ensure_webhooks(mesh)
    assert endpoints.ensure_webhooks(mesh) == hooks
    doors = load_doors(config, mesh.webhook_secrets)
    made = {}
    for name, hook in hooks.items():
        headers, certificate = endpoints.webhook_headers(hook, BODY), b""
        if hook["auth"] == "mtls":
            certificate = first_certificate(Path(hook["secret_file"]))
        source, _, token = hook["url"].partition("/v1/webhooks/")[2].partition("/")
        assert source == name
        made[name] = await doors[name].prove(Knock(Headers(headers), BODY, time.time(), certificate, token))
        assert hook["auth"] == "none" or is_private(Path(hook["secret_file"]))
    return made


async def test_every_scheme_opens_with_what_up_generates(tmp_path: Path) -> None:
    """Each but SNS, whose messages only Amazon can sign; a second start keeps every secret."""
    (tmp_path / "sources.yaml").write_text(EVERY)
    found = await proofs(tmp_path / "state", tmp_path)
    assert {name for name, proof in found.items() if proof is None} == {"sns"}
    hooks = endpoints.ensure_webhooks(Mesh(tmp_path / "state", tmp_path))
    others = {"hmac-grafana-timed", "url-token-headed", "routing-key"}
    assert {hook["auth"] for hook in hooks.values()} == set(hooks) - others
    # Whoever reads endpoints.json knows these two from their secret in a header.
    assert (hooks["routing-key"]["auth"], hooks["routing-key"]["header"]) == ("bearer", "Authorization")
    assert (hooks["url-token-headed"]["auth"], hooks["url-token-headed"]["header"]) == ("header", "X-Own")
    assert hooks["mtls"]["url"].startswith("https://")


async def test_every_shipped_source_opens(tmp_path: Path) -> None:
    """Plain `up` lets every source of the shipped configuration in, but SNS until its topics are named."""
    found = await proofs(tmp_path, DEFAULT_CONFIG)
    assert {name for name, proof in found.items() if proof is None} == {"sns"}


@pytest.mark.parametrize("auth", ["hmac_github", "hmac_standard", "sns", "mtls", "bearer"])
def test_no_secret_is_made_up_for_a_source_without_one(tmp_path: Path, auth: str) -> None:
    """The bridge itself generates nothing: without `up`, a missing file refuses its start."""
    (tmp_path / "sources.yaml").write_text(f"sources:\n- {{source: x, {auth}: {{}}}}\n")
    with pytest.raises(BootError, match="secret of source x cannot be read"):
        load_doors(tmp_path, tmp_path)
