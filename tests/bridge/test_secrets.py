"""Secrets at boot: none is made up, an empty one refuses it, a short one is told of; and how they are compared."""

import ast
import base64
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from opsmesh.config.v1 import sources_pb2
from services.bridge.senders.doors import Door, load_doors
from services.mesh.errors import BootError
from tests.bridge.house import write_config
from tests.ingest.house import ROOT

SENDERS = ROOT / "services" / "bridge" / "senders"
SHOWN = ("bearer: {}", "header: {header: X-A}", "url_token: {}", "routing_key: {}")
SIGNS = ("hmac_github", "hmac_pagerduty", "hmac_sentry", "hmac_slack", "hmac_splunk", "hmac_grafana")


def _plain(size: int) -> str:
    return "s" * size


def _password(size: int) -> str:
    return "a-long-user-name-counts-for-nothing:" + "p" * size


def _standard(size: int) -> str:
    return "whsec_" + base64.b64encode(b"k" * size).decode()


# How each scheme is written, the least that is not told of, and a secret of a length.
LEAST: dict[str, tuple[int, Callable[[int], str]]] = {
    **dict.fromkeys(SHOWN, (32, _plain)),
    **{f"{one}: {{}}": (16, _plain) for one in SIGNS},
    "hmac_standard: {}": (16, _standard),
    "basic: {}": (16, _password),
    'sns: {topics: ["arn:aws:sns:eu-west-1:123456789012:a"]}': (16, _password),
}


def boot(folder: Path, auth: str, secrets: str) -> list[str]:
    """Return the warnings that name the source when it starts with this file."""
    with capture_logs() as logs:
        load_doors(write_config(folder, f"sources:\n- {{source: one, {auth}}}\n", {"one": secrets}), folder)
    return [str(one) for one in logs if one["log_level"] == "warning" and one.get("source") == "one"]


@pytest.mark.parametrize("auth", LEAST)
def test_a_short_secret_is_told_of_and_accepted(tmp_path: Path, auth: str) -> None:
    """A warning names source, file and mend, never the secret; also for one short one among several."""
    least, secret = LEAST[auth]
    assert boot(tmp_path, auth, secret(least)) == []
    for content in (secret(least - 1), f"{secret(least)}\n{secret(least - 1)}\n"):
        (told,) = boot(tmp_path, auth, content)
        assert str(tmp_path / "one") in told
        assert f"at least {least}" in told
        assert "openssl rand" in told
        assert secret(least - 1) not in told


@pytest.mark.parametrize("content", ["", "\n", " \t\n\n"])
@pytest.mark.parametrize("auth", [*LEAST, "mtls: {}"])
def test_an_empty_secret_refuses_the_boot(tmp_path: Path, auth: str, content: str) -> None:
    """Whatever the scheme, nobody is let in by an empty file; the error names the mend."""
    with pytest.raises(BootError, match=r"source one is empty(?s:.*)NEXT: "):
        boot(tmp_path, auth, content)


@pytest.mark.parametrize("auth", [*LEAST, "mtls: {}"])
def test_no_secret_refuses_the_boot(tmp_path: Path, auth: str) -> None:
    """Without a file nothing starts, and the error says how to mean it: `none: {}`, which alone needs no file."""
    write_config(tmp_path, f"sources:\n- {{source: one, {auth}}}\n", {})
    with pytest.raises(BootError, match=r"source one cannot be read(?s:.*)none: {}"):
        load_doors(tmp_path, tmp_path)
    write_config(tmp_path, "sources:\n- {source: one, none: {}}\n", {})
    assert not load_doors(tmp_path, tmp_path)["one"].authenticity.verified


def test_a_source_that_says_nothing_refuses_the_boot(tmp_path: Path) -> None:
    """Not naming a scheme is not naming none."""
    write_config(tmp_path, "sources:\n- {source: one}\n", {"one": _plain(40)})
    with pytest.raises(BootError, match="auth"):
        load_doors(tmp_path, tmp_path)
    with pytest.raises(BootError, match="does not say how"):
        Door(sources_pb2.Source(source="one"), tmp_path / "one")


@pytest.mark.parametrize("content", ["user", "user:", f"user:{'p' * 20}\nother:\n"])
@pytest.mark.parametrize("auth", ["basic: {}", "sns: {}"])
def test_an_empty_password_refuses_the_boot(tmp_path: Path, auth: str, content: str) -> None:
    """A user without a password is a secret that everybody knows."""
    with pytest.raises(BootError, match="not user:password"):
        boot(tmp_path, auth, content)


def test_every_scheme_is_looked_at_here() -> None:
    """A scheme that is added to the IDL must say how short its secrets may be."""
    schemes = {one.name for one in sources_pb2.Source.DESCRIPTOR.oneofs_by_name["auth"].fields}
    assert {one.partition(":")[0] for one in LEAST} == schemes - {"none", "mtls"}


def _comparisons(tree: ast.AST) -> Iterator[ast.Compare]:
    """Return what compares two values by equality or as members."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare) and any(isinstance(one, ast.Eq | ast.NotEq | ast.In) for one in node.ops):
            yield node


def test_secrets_are_compared_in_constant_time() -> None:
    """No scheme compares with `==` or `in` what a secret or a signature may be in; `equal_any` is the one place."""
    named = {"secret", "secrets", "wanted", "offered", "signature", "shown", "token", "mac", "password", "hexdigest"}
    found = 0
    for file in SENDERS.glob("*.py"):
        tree = ast.parse(file.read_text())
        found += file.read_text().count("hmac.compare_digest(")
        for compare in _comparisons(tree):
            names = {one.id for one in ast.walk(compare) if isinstance(one, ast.Name)}
            names |= {one.attr for one in ast.walk(compare) if isinstance(one, ast.Attribute)}
            assert not names & named, f"{file.name}:{compare.lineno}: {ast.unparse(compare)}"
    assert found == 1
