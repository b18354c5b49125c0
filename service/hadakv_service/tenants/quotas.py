"""What each tenant may have."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from hadakv_service.errors import QuotaExceeded


@dataclass(frozen=True, slots=True)
class Quota:
    """What a tenant's sessions may take together.

    Attributes:
        nbytes: packed bytes, as each session tells them; what several share counts for each. None is no limit.
        sessions: how many there may be; None is any number.
    """

    nbytes: int | None = None
    sessions: int | None = None


NO_QUOTA = Quota()


class QuotaTable:
    """Every tenant's quota as it is now. May be asked in one thread and replaced in another.

    Args:
        default: of tenants that have none of their own.
    """

    def __init__(self, default: Quota = NO_QUOTA) -> None:
        self.default = default
        self._own: Mapping[str, Quota] = {}

    def quota(self, owner: str) -> Quota:
        """What a tenant may have from now on, whatever it has."""
        return self._own.get(owner, self.default)

    def replace(self, own: Mapping[str, Quota]) -> None:
        """Let these tenants have quotas of their own, and no others."""
        self._own = dict(own)


class TenantUsage:
    """What each tenant has, in memory and below.

    Args:
        quotas: what each may have.
        found: what each has at the beginning: packed bytes, and sessions.
    """

    def __init__(self, quotas: QuotaTable, found: Mapping[str, tuple[int, int]]) -> None:
        self._quotas = quotas
        self._nbytes = Counter({owner: nbytes for owner, (nbytes, _) in found.items()})
        self._sessions = Counter({owner: sessions for owner, (_, sessions) in found.items()})

    def check(self, owner: str, nbytes: int, sessions: int) -> None:
        """Whether a tenant may have so much more.

        Raises:
            QuotaExceeded: it may not.
        """
        quota = self._quotas.quota(owner)
        if sessions > 0 and quota.sessions is not None and self._sessions[owner] + sessions > quota.sessions:
            raise QuotaExceeded("sessions", sessions, quota.sessions)
        if nbytes > 0 and quota.nbytes is not None and self._nbytes[owner] + nbytes > quota.nbytes:
            raise QuotaExceeded("bytes", nbytes, quota.nbytes)

    def add(self, owner: str, nbytes: int, sessions: int) -> None:
        """Note that a tenant has so much more, or less."""
        self._nbytes[owner] += nbytes
        self._sessions[owner] += sessions
        if not self._sessions[owner]:
            # Or names that come and go would be kept for ever.
            del self._nbytes[owner], self._sessions[owner]
