"""Settings come from the environment; what is missing or wrong is told with its mend."""

import pytest

from services.mesh.errors import BootError
from services.mesh.settings import MeshSettings, PostgresSettings, load

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
