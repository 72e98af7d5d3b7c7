"""Who may call what: deploy/identities.yaml, read once at boot. Not listed means refused."""

from collections.abc import Mapping
from pathlib import Path

from opsmesh.config.v1 import identities_pb2
from services.mesh import policy
from services.mesh.config import load_yaml


class Identities:
    """The identities of the mesh and their permissions."""

    def __init__(self, message: identities_pb2.Identities) -> None:
        self.trust_domain = message.trust_domain
        self._permissions: Mapping[str, frozenset[str]] = {
            one.identity: frozenset(one.permissions) for one in message.identities
        }
        self._groups: Mapping[str, frozenset[str]] = {one.identity: frozenset(one.groups) for one in message.identities}
        self._grant_readers = frozenset(one.identity for one in message.identities if one.reads_need_grant)

    @classmethod
    def load(cls, path: Path) -> "Identities":
        """Read identities.yaml; a ConfigError names file, line and field."""
        return cls(load_yaml(path, identities_pb2.Identities))

    @property
    def names(self) -> frozenset[str]:
        """Return every listed identity."""
        return frozenset(self._permissions)

    def permissions(self, identity: str) -> frozenset[str]:
        """Return what an identity may do; nothing when it is not listed."""
        return self._permissions.get(identity, frozenset())

    def allows(self, identity: str, permission: str) -> bool:
        """Say whether an identity holds a permission; what every mesh member may do needs only to be listed."""
        return identity in self.holders(permission)

    def holders(self, permission: str) -> frozenset[str]:
        """Return the identities that hold a permission."""
        if permission == policy.BUILTIN_PERMISSION:
            return self.names
        return frozenset(name for name, held in self._permissions.items() if permission in held)

    def groups(self, identity: str) -> frozenset[str]:
        """Return the groups of a person; none when it is not listed."""
        return self._groups.get(identity, frozenset())

    def reads_need_grant(self, identity: str) -> bool:
        """Say whether reads of tools by this identity need a grant, too."""
        return identity in self._grant_readers

    def unknown_permissions(self) -> dict[str, frozenset[str]]:
        """Return, per identity, permissions that no method asks for: typos."""
        known = {found.permission for found in policy.table().values()}
        return {name: held - known for name, held in self._permissions.items() if held - known}
