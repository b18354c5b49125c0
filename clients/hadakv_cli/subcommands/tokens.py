"""Command `token add`: makes a token, and adds its hash to the token file of the service."""

import hashlib
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from secrets import token_urlsafe
from typing import Annotated

from typer import Argument, BadParameter, Option

from hadakv_cli import output
from hadakv_cli.options import Json

# The rules of the service for a line of its token file.
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_LINE = re.compile(r"([A-Za-z0-9_.-]{1,64}):[0-9a-fA-F]{64}((?:\s+(?:quota|sessions)=\S+)*)")
_SIZE = re.compile(r"\d+(\.\d+)?\s*([KMGTP]i?)?B?|none", re.IGNORECASE | re.ASCII)
_NUMBER = re.compile(r"\d+|none", re.ASCII)


def add_token(
    name: Annotated[str, Argument(metavar="NAME", help="Name of the tenant: 1 to 64 of A-Z a-z 0-9 _ . -")],
    file: Annotated[
        Path,
        Option(
            metavar="FILE",
            envvar="HADAKV_TOKEN_FILE",
            help="Token file of the service, to which the line is added.",
        ),
    ] = Path("tokens"),
    quota: Annotated[str | None, Option(metavar="SIZE", help="Total size of the tenant's sessions.")] = None,
    sessions: Annotated[str | None, Option(metavar="NUMBER", help="Number of the tenant's sessions.")] = None,
    as_json: Json = False,
) -> None:
    """Make a token for a tenant, print it once, and add its hash to the token file."""
    limits = _limits(name, quota, sessions)
    if file.exists():
        _check_lines(file, name, limits)
    token = token_urlsafe(32)
    _append_line(file, " ".join([f"{name}:{hashlib.sha256(token.encode()).hexdigest()}", *_assignments(limits)]))
    if as_json:
        output.print_json({"tenant": name, "token": token, "file": str(file)})
    else:
        output.emit(token)
    print(
        f"Added {name} to {file}. The token is not shown again. Restart a service with --token-file {file}, or send it "
        "SIGHUP, so that it accepts the token.",
        file=sys.stderr,
    )


def _limits(name: str, quota: str | None, sessions: str | None) -> dict[str, str]:
    if not _NAME.fullmatch(name):
        raise BadParameter(f"the name must be 1 to 64 of A-Z a-z 0-9 _ . -, not {name!r}")
    if quota is not None and not _SIZE.fullmatch(quota):
        raise BadParameter(f"--quota: must be a size such as 4GiB, or none, not {quota!r}")
    if sessions is not None and not _NUMBER.fullmatch(sessions):
        raise BadParameter(f"--sessions: must be a whole number, or none, not {sessions!r}")
    limits = {"quota": quota and "".join(quota.split()), "sessions": sessions}
    return {key: value for key, value in limits.items() if value is not None}


def _assignments(limits: Mapping[str, str]) -> list[str]:
    return [f"{key}={value}" for key, value in limits.items()]


def _check_lines(path: Path, name: str, limits: Mapping[str, str]) -> None:
    """Check that the service will accept the file with the new line. It rejects a file as a whole.

    Raises:
        ValueError: a line is not one of a token file, or gives the tenant another limit.
    """
    for number, line in enumerate(path.read_text("utf-8", "replace").splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None:
            raise ValueError(f"{path}:{number} is not a line of a token file")
        if match[1] != name:
            continue
        for key, _, value in (each.partition("=") for each in match[2].split()):
            if limits.get(key, value).lower() != value.lower():
                raise ValueError(f"{path}:{number}: {name} already has {key}={value}; change it there")


def _append_line(path: Path, line: str) -> None:
    """Append a line in one write, so that two commands at once do not mix. A new file is for this user only."""
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
    with os.fdopen(descriptor, "r+b", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        unfinished = size and os.pread(descriptor, 1, size - 1) != b"\n"
        content = f"{chr(10) if unfinished else ''}{line}\n".encode()
        if file.write(content) != len(content):
            raise OSError(f"{path}: only a part of the line was written")
        os.fsync(descriptor)
