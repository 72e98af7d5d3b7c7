"""Settings come from the environment; what is missing or wrong is told with its mend."""

import stat
from pathlib import Path

import pytest

from services.agents.settings import AgentsSettings
from services.audit.settings import AuditSettings
from services.automation.settings import AutomationSettings
from services.bridge.settings import BridgeSettings
from services.gateway.settings import GatewaySettings
from services.guardrails.settings import GuardrailsSettings
from services.ingest.settings import IngestSettings
from services.local import certs
from services.mesh.errors import BootError
from services.mesh.settings import SECRET, MeshSettings, PostgresSettings, load, require_private
from services.router.settings import RouterSettings

GOOD = {
    "LISTEN": "127.0.0.1:1",
    "METRICS": "",
    "TLS_CERT": "/c",
    "TLS_KEY": "/k",
    "TLS_CA": "/a",
    "IDENTITIES": "/i",
    "CONFIG": "/d",
    "PEERS": '{"audit":"127.0.0.1:2"}',
    "STATE": "/s",
}


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Set what every service needs."""
    for name, value in GOOD.items():
        monkeypatch.setenv(f"OPSMESH_{name}", value)
    return monkeypatch


def test_settings_are_read(environment: pytest.MonkeyPatch) -> None:
    """Peers are a JSON object; unknown OPSMESH_ variables are somebody else's."""
    environment.setenv("OPSMESH_SOMETHING_ELSE", "1")
    assert load(MeshSettings).peers == {"audit": "127.0.0.1:2"}


def test_a_missing_variable_is_named_with_its_mend(environment: pytest.MonkeyPatch) -> None:
    """Every missing variable has a line of its own."""
    environment.delenv("OPSMESH_TLS_CERT")
    with pytest.raises(BootError) as raised:
        load(PostgresSettings)
    lines = str(raised.value).splitlines()
    assert [line.split()[0] for line in lines] == [
        "OPSMESH_TLS_CERT",
        "OPSMESH_POSTGRES_DSN",
        "OPSMESH_POSTGRES_PASSWORD_FILE",
    ]
    assert "opsmesh certs init" in lines[0]


@pytest.mark.parametrize(("name", "value"), [("LISTEN", "7400"), ("LOG_LEVEL", "loud"), ("PEERS", "{")])
def test_a_wrong_variable_is_named(environment: pytest.MonkeyPatch, name: str, value: str) -> None:
    """A value that cannot work is refused at boot."""
    environment.setenv(f"OPSMESH_{name}", value)
    with pytest.raises(BootError, match=f"(?i){name}"):
        load(MeshSettings)


def test_a_secret_in_the_wrong_place_is_not_repeated(environment: pytest.MonkeyPatch) -> None:
    """The boot error does not print values."""
    environment.setenv("OPSMESH_LISTEN", "hunter2")
    with pytest.raises(BootError) as raised:
        load(MeshSettings)
    assert "hunter2" not in str(raised.value)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o700])
def test_a_secret_that_others_may_read_refuses_the_boot(
    environment: pytest.MonkeyPatch, tmp_path: Path, mode: int
) -> None:
    """A private key wider than 0600 is a boot error with the chmod to run; with 0600 or less the service boots."""
    key = tmp_path / "audit.key"
    key.write_text("key")
    environment.setenv("OPSMESH_TLS_KEY", str(key))
    key.chmod(mode)
    with pytest.raises(BootError, match=f"OPSMESH_TLS_KEY.*mode {mode:04o}.*NEXT: chmod 600 {key}"):
        load(MeshSettings)
    for enough in (0o600, 0o400):
        key.chmod(enough)
        assert load(MeshSettings).tls_key == key


def test_every_secret_setting_is_held_to_it() -> None:
    """The secrets of all services are known by their names; a public key is none."""
    services = (AgentsSettings, AuditSettings, AutomationSettings, BridgeSettings, GatewaySettings, GuardrailsSettings)
    fields = {name for one in (*services, IngestSettings, RouterSettings) for name in one.model_fields}
    files = {"postgres_password_file", "redis_password_file", "grant_key_file", "identity_key_file", "log_key_file"}
    assert {name for name in fields if SECRET.search(name)} == {"tls_key", "https_key", *files}
    assert "grant_public_key_file" in fields


def test_a_secret_in_a_file_of_configuration_is_held_to_it(tmp_path: Path) -> None:
    """`require_private` is for secrets that are named in files; a missing one is left to whoever reads it."""
    secret = tmp_path / "alertmanager"
    require_private(secret, "the secret of source alertmanager")
    secret.write_text("s")
    secret.chmod(0o604)
    with pytest.raises(BootError, match="the secret of source alertmanager: the secret file"):
        require_private(secret, "the secret of source alertmanager")


def test_what_certs_init_makes_is_private(tmp_path: Path) -> None:
    """Every private key that `opsmesh certs init` makes passes."""
    keys = list(certs.ensure(tmp_path).glob("*.key"))
    assert keys
    assert {stat.S_IMODE(key.stat().st_mode) for key in keys} == {0o600}
