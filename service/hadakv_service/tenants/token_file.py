"""Token file: hashes of bearer tokens, the tenant of each token, and quotas of tenants."""

import hashlib
import hmac
import logging
import re
import stat
from dataclasses import replace
from pathlib import Path

from pydantic import ByteSize, TypeAdapter, ValidationError

from hadakv_service.errors import Unauthorized
from hadakv_service.tenants.quotas import Quota, QuotaTable

log = logging.getLogger(__name__)

_LINE = re.compile(r"(?P<tenant>[A-Za-z0-9_.-]{1,64}):(?P<digest>[0-9a-fA-F]{64})(?P<quotas>(?:\s+\S+)*)")
_LINE_RULE = "expected 'tenant:SHA-256 of the token in hex', optionally followed by 'quota=SIZE' and 'sessions=NUMBER'"
_SIZE = TypeAdapter(ByteSize)


class TokenFile:
    """Bearer tokens and quotas from a file, which can be reloaded.

    Lines have the form `tenant:SHA-256 of the token in hex [quota=4GiB] [sessions=1000]`. Empty lines and lines that
    start with # are ignored. A tenant may have several lines, one per token. A quota on one line applies to all tokens
    of the tenant.

    Args:
        path: path of the file.
        quotas: table to update each time the file is read.

    Raises:
        ValueError: a line is malformed or contradicts another, or the file has no token.
        OSError: the file cannot be read.
    """

    def __init__(self, path: Path, quotas: QuotaTable | None = None) -> None:
        self._path = path
        self._quotas = quotas or QuotaTable()
        self._tenants: list[tuple[bytes, str]] = []
        self._read()

    def _read(self) -> None:
        tenants, quotas = _parse(self._path, self._quotas.default)
        # Each assignment is atomic, so concurrent requests see either the old tokens or the new ones.
        self._tenants = tenants
        self._quotas.replace(quotas)
        if stat.S_IMODE(self._path.stat().st_mode) & (stat.S_IRWXG | stat.S_IRWXO):
            log.warning("token file %s is accessible to other users: run chmod 600", self._path)

    def reload(self) -> None:
        """Read the file again. If that fails, log the error and keep the previous tokens."""
        try:
            self._read()
        except (ValueError, OSError) as error:
            log.error("token file not reloaded, previous tokens still in use: %s", error)
        else:
            log.info("token file %s reloaded: %d tokens", self._path, len(self._tenants))

    def tenant(self, authorization: str) -> str:
        """Return the tenant of an Authorization header.

        Raises:
            Unauthorized: the header is missing, or its token is not in the file.
        """
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise Unauthorized("Send one header 'Authorization: Bearer <token>'.")
        digest = hashlib.sha256(token.strip().encode("latin-1")).digest()
        # Compare every digest. Otherwise the response time would show which one matched.
        matches = [tenant for known, tenant in self._tenants if hmac.compare_digest(known, digest)]
        if not matches:
            raise Unauthorized("The token is unknown.")
        return matches[0]


def _parse(path: Path, default: Quota) -> tuple[list[tuple[bytes, str]], dict[str, Quota]]:
    """Return the tenant of each token digest, and the quotas of tenants that set their own."""
    tenants: dict[bytes, str] = {}
    limits: dict[str, dict[str, int | None]] = {}
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None:
            raise ValueError(f"{path}:{number}: {_LINE_RULE}")
        tenant = match["tenant"]
        if tenants.setdefault(bytes.fromhex(match["digest"]), tenant) != tenant:
            raise ValueError(f"{path}:{number}: the token already belongs to another tenant")
        for assignment in match["quotas"].split():
            field, limit = _parse_limit(assignment, f"{path}:{number}")
            if limits.setdefault(tenant, {}).setdefault(field, limit) != limit:
                raise ValueError(f"{path}:{number}: {tenant} already has another {assignment.partition('=')[0]}")
    if not tenants:
        raise ValueError(f"{path}: the file has no token")
    return list(tenants.items()), {tenant: replace(default, **own) for tenant, own in limits.items()}


def _parse_limit(assignment: str, where: str) -> tuple[str, int | None]:
    """Return a field of `Quota` and its value. `none` means unlimited, whatever the default."""
    name, _, value = assignment.partition("=")
    if name not in ("quota", "sessions"):
        raise ValueError(f"{where}: {_LINE_RULE}, not {assignment!r}")
    field = "nbytes" if name == "quota" else name
    if value == "none":
        return field, None
    try:
        number = int(_SIZE.validate_python(value)) if name == "quota" else int(value)
    except (ValidationError, ValueError):
        number = -1
    if number < 0:
        raise ValueError(f"{where}: {name} must be {'a size such as 4GiB' if name == 'quota' else 'a number'}, or none")
    return field, number
