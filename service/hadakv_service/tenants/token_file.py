"""Who calls: bearer tokens from a file, stored hashed, each naming a tenant, and what that tenant may have."""

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

_LINE = re.compile(r"(?P<tenant>[A-Za-z0-9_.-]{1,64}):(?P<digest>[0-9a-fA-F]{64})(?P<words>(?:\s+\S+)*)")
_LINE_RULE = "expected 'tenant:sha256 of the token in hex', then 'quota=SIZE' or 'sessions=NUMBER' if need be"
_SIZE = TypeAdapter(ByteSize)


class TokenFile:
    """Lines `tenant:sha256 of the token in hex [quota=4GiB] [sessions=1000]`; blank ones and those with # are skipped.

    A tenant may have several lines, one for each of its tokens; what one of them says of its quota holds for all.

    Args:
        path: of the file.
        quotas: takes on what the file says, each time it is read.

    Raises:
        ValueError: a line is unclear or contradicts another, or there is no token at all.
        OSError: the file cannot be read.
    """

    def __init__(self, path: Path, quotas: QuotaTable | None = None) -> None:
        self._path = path
        self._quotas = quotas or QuotaTable()
        self._tenants: list[tuple[bytes, str]] = []
        self._read()

    def _read(self) -> None:
        tenants, own = _parse(self._path, self._quotas.default)
        # Whoever is asking meanwhile sees all of the old file or all of the new one.
        self._tenants = tenants
        self._quotas.replace(own)
        if stat.S_IMODE(self._path.stat().st_mode) & (stat.S_IRWXG | stat.S_IRWXO):
            log.warning("%s is open to other users of this machine; chmod 600 it", self._path)

    def reload(self) -> None:
        """Read the file again; if it cannot be used, the tokens from before stay in force."""
        try:
            self._read()
        except (ValueError, OSError) as error:
            log.error("the token file was not taken on, the tokens from before stay in force: %s", error)
        else:
            log.info("%s was read again, it has %d tokens", self._path, len(self._tenants))

    def tenant(self, authorization: str) -> str:
        """The tenant an Authorization header names.

        Raises:
            Unauthorized: the header is missing, or its token is not in the file.
        """
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise Unauthorized("Send the header 'Authorization: Bearer <token>'.")
        digest = hashlib.sha256(token.strip().encode("latin-1")).digest()
        # Every digest is compared, so that the time tells nothing about which one matched.
        matches = [tenant for known, tenant in self._tenants if hmac.compare_digest(known, digest)]
        if not matches:
            raise Unauthorized("The token is not known.")
        return matches[0]


def _parse(path: Path, default: Quota) -> tuple[list[tuple[bytes, str]], dict[str, Quota]]:
    """Each token's digest with its tenant, and the quotas of tenants that have their own."""
    tenants: dict[bytes, str] = {}
    said: dict[str, dict[str, int | None]] = {}
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None:
            raise ValueError(f"{path}:{number}: {_LINE_RULE}")
        tenant = match["tenant"]
        if tenants.setdefault(bytes.fromhex(match["digest"]), tenant) != tenant:
            raise ValueError(f"{path}:{number}: the token is another tenant's already")
        for word in match["words"].split():
            name, value = _quota_word(word, f"{path}:{number}")
            if said.setdefault(tenant, {}).setdefault(name, value) != value:
                raise ValueError(f"{path}:{number}: {tenant} has another {word.partition('=')[0]} already")
    if not tenants:
        raise ValueError(f"{path}: has no token")
    own = {tenant: replace(default, **words) for tenant, words in said.items()}
    return list(tenants.items()), own


def _quota_word(word: str, where: str) -> tuple[str, int | None]:
    """A field of `Quota` and its value; `none` takes a default away."""
    name, _, value = word.partition("=")
    if name not in ("quota", "sessions"):
        raise ValueError(f"{where}: {_LINE_RULE}, not {word!r}")
    field = "nbytes" if name == "quota" else name
    if value == "none":
        return field, None
    try:
        number = int(_SIZE.validate_python(value)) if name == "quota" else int(value)
    except (ValidationError, ValueError):
        number = -1
    if number < 0:
        raise ValueError(f"{where}: {name} must be {'a size, 4GiB say' if name == 'quota' else 'a number'}, or none")
    return field, number
