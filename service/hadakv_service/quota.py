"""What each tenant may have."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Quota:
    """What a tenant's sessions may take together.

    Attributes:
        nbytes: bytes, counted as the memory budget counts them; None is no limit but that.
        sessions: how many there may be; None is any number.
    """

    nbytes: int | None = None
    sessions: int | None = None


NO_QUOTA = Quota()


class Quotas:
    """Every tenant's quota as it is now. May be asked in one thread and replaced in another.

    Args:
        default: of tenants that have none of their own.
    """

    def __init__(self, default: Quota = NO_QUOTA) -> None:
        self.default = default
        self._own: Mapping[str, Quota] = {}

    def of(self, owner: str) -> Quota:
        """What a tenant may have from now on, whatever it has."""
        return self._own.get(owner, self.default)

    def replace(self, own: Mapping[str, Quota]) -> None:
        """Let these tenants have quotas of their own, and no others."""
        self._own = dict(own)
