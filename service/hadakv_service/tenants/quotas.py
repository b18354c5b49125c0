"""Quotas of tenants, and their current usage."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from hadakv_service.errors import QuotaExceeded


@dataclass(frozen=True, slots=True)
class Quota:
    """Limits on all sessions of a tenant together.

    Attributes:
        nbytes: maximum packed size in bytes; None is unlimited. Pages shared by several sessions count for each.
        sessions: maximum number of sessions; None is unlimited.
    """

    nbytes: int | None = None
    sessions: int | None = None


NO_QUOTA = Quota()


class QuotaTable:
    """Current quotas of all tenants. One thread may read them while another replaces them.

    Args:
        default: quota of tenants that are not in the table.
    """

    def __init__(self, default: Quota = NO_QUOTA) -> None:
        self.default = default
        self._by_tenant: Mapping[str, Quota] = {}

    def quota(self, tenant: str) -> Quota:
        """Return a tenant's quota. Its usage may exceed a quota that was lowered."""
        return self._by_tenant.get(tenant, self.default)

    def replace(self, by_tenant: Mapping[str, Quota]) -> None:
        """Replace the whole table. Tenants that are not in it get the default."""
        self._by_tenant = dict(by_tenant)


class TenantUsage:
    """Size and number of each tenant's sessions, in memory and on disk.

    Args:
        quotas: quotas to check against.
        initial: packed bytes and number of sessions of each tenant at startup.
    """

    def __init__(self, quotas: QuotaTable, initial: Mapping[str, tuple[int, int]]) -> None:
        self._quotas = quotas
        self._nbytes = Counter({tenant: nbytes for tenant, (nbytes, _) in initial.items()})
        self._sessions = Counter({tenant: sessions for tenant, (_, sessions) in initial.items()})

    def check(self, tenant: str, nbytes: int, sessions: int) -> None:
        """Check that a tenant may store additional bytes and sessions. Negative amounts always pass.

        Args:
            tenant: name of the tenant.
            nbytes: additional packed bytes.
            sessions: additional sessions.

        Raises:
            QuotaExceeded: the usage would exceed the quota.
        """
        quota = self._quotas.quota(tenant)
        if sessions > 0 and quota.sessions is not None and self._sessions[tenant] + sessions > quota.sessions:
            raise QuotaExceeded("sessions", sessions, quota.sessions)
        if nbytes > 0 and quota.nbytes is not None and self._nbytes[tenant] + nbytes > quota.nbytes:
            raise QuotaExceeded("bytes", nbytes, quota.nbytes)

    def add(self, tenant: str, nbytes: int, sessions: int) -> None:
        """Add to a tenant's usage; negative amounts reduce it."""
        self._nbytes[tenant] += nbytes
        self._sessions[tenant] += sessions
        if not self._sessions[tenant]:
            # Otherwise the counters of former tenants would remain forever.
            del self._nbytes[tenant], self._sessions[tenant]
