"""Settings of the service: name, type, default, group and help of each. `startup.arguments` reads them."""

import ipaddress
import re
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from platformdirs import user_data_path
from pydantic import AfterValidator, BaseModel, BeforeValidator, ByteSize, ConfigDict, Field, model_validator

from hadakv_service.sessions.limits import MAX_TTL_SECONDS

LOOPBACK_NAMES = {"localhost"}
MIN_MEMORY_BUDGET = 1 << 20
# The length of a msgpack tensor has 32 bits.
MAX_BODY_NBYTES = 4 << 30
_HOST_NAME = re.compile(r"\*|[A-Za-z0-9._-]+")
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s*]+")

# Groups of `--help`, in its order.
Group = Literal["Network", "Memory and disk", "Security", "Limits", "Log"]


def setting(group: Group, default: Any, description: str, **limits: Any) -> Any:
    """Return the field of one setting.

    Args:
        group: group of the setting in `--help`.
        default: value without flag and environment variable. None and () have no text in `--help`.
        description: text in `--help`. It names the default if that is None.
        limits: limits of the value, as `pydantic.Field` takes them.
    """
    return Field(default, description=description, json_schema_extra={"group": group}, **limits)


def _split(value: str | tuple[str, ...] | list[str]) -> tuple[str, ...]:
    parts = [value] if isinstance(value, str) else value
    return tuple(item.lower() for part in parts for item in part.replace(",", " ").split())


def _check_host_names(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        if not _HOST_NAME.fullmatch(name):
            raise ValueError(f"{name!r} is not a host name; leave out the scheme, port and path")
    return names


def _check_origins(origins: tuple[str, ...]) -> tuple[str, ...]:
    for origin in origins:
        if not _ORIGIN.fullmatch(origin):
            raise ValueError(f"{origin!r} is not an origin such as https://example.org or http://localhost:3000")
    return origins


def _check_memory_budget(nbytes: ByteSize) -> ByteSize:
    if nbytes < MIN_MEMORY_BUDGET:
        raise ValueError(f"must be at least {human_size(MIN_MEMORY_BUDGET)}, not {human_size(nbytes)}")
    return nbytes


def _check_max_body(nbytes: ByteSize) -> ByteSize:
    if nbytes < 1:
        raise ValueError("must be at least 1B, not 0B")
    if nbytes > MAX_BODY_NBYTES:
        limit = human_size(MAX_BODY_NBYTES)
        raise ValueError(f"must be at most {limit}, the limit of msgpack, not {human_size(nbytes)}")
    return nbytes


def _check_path(path: str | Path) -> str | Path:
    # An empty path means the current directory, which is never what an empty variable means.
    if path == "":
        raise ValueError("must be a path, not ''")
    return path


# Comma-separated, in flags and in environment variables.
CommaSeparated = Annotated[tuple[str, ...], BeforeValidator(_split)]
HostNames = Annotated[CommaSeparated, AfterValidator(_check_host_names)]
Origins = Annotated[CommaSeparated, AfterValidator(_check_origins)]
MemoryBudget = Annotated[ByteSize, AfterValidator(_check_memory_budget)]
MaxBody = Annotated[ByteSize, AfterValidator(_check_max_body)]
FilePath = Annotated[Path, BeforeValidator(_check_path)]
OptionalSize = Annotated[ByteSize, Field(ge=0)] | None


def user_data_directory() -> Path:
    """Return the platform's data directory of the current user for this service."""
    return user_data_path("hadakv", appauthor=False)


class Settings(BaseModel):
    """Settings of one service.

    Each is a flag, `--max-body 1GiB`, and an environment variable, `HADAKV_MAX_BODY=1GiB`.
    """

    model_config = ConfigDict(extra="forbid", validate_default=False)

    host: str = setting(
        "Network",
        "127.0.0.1",
        "Address to bind. Addresses other than loopback need --token-file or --insecure.",
    )
    port: int = setting("Network", 8765, "Port to bind; 0 selects a free port.", ge=0, le=65535)
    uds: FilePath | None = setting(
        "Network", None, "Path of a Unix domain socket to bind instead of --host and --port."
    )
    uds_mode: str = setting(
        "Network", "600", "Permissions of the Unix domain socket, in octal.", pattern="^0?[0-7]{3}$"
    )
    http_protocol: Literal["hadakv", "uvicorn"] = setting(
        "Network",
        "hadakv",
        "HTTP protocol implementation. uvicorn: the stock one, without header, stall and pipelining limits; bodies are "
        "copied.",
    )
    backend: Literal["auto", "metal", "cuda", "cpu"] = setting(
        "Memory and disk",
        "auto",
        "Backend that runs the codec; auto selects the first available of metal, cuda, cpu.",
    )
    threads: int | None = setting(
        "Memory and disk", None, "Number of threads of the CPU backend; default: one per processor.", ge=1
    )
    gpu_min_rows: int | None = setting(
        "Memory and disk",
        None,
        "Vectors of K and V in one call from which the GPU encodes; fewer are encoded by the CPU; default: measured at "
        "the start.",
        ge=0,
    )
    memory_budget: MemoryBudget | None = setting(
        "Memory and disk", None, "Memory for sessions, at least 1MiB; default: half of the device's memory."
    )
    data_dir: FilePath = setting(
        "Memory and disk",
        user_data_directory(),
        "Directory for sessions on disk: evicted from memory, or kept across restarts.",
    )
    disk_budget: OptionalSize = setting(
        "Memory and disk", None, "Disk space for sessions; 0 disables the disk; default: half of the free space."
    )
    durability: Literal["memory", "spill", "ack"] = setting(
        "Memory and disk",
        "spill",
        "Default durability of sessions. memory: lost at exit. spill: saved by checkpoints, when evicted from memory "
        "and at a clean shutdown. ack: saved before every response.",
    )
    checkpoint_seconds: float = setting(
        "Memory and disk",
        30.0,
        "Seconds after a change until a spill session is saved in the background; 0 for never.",
        ge=0,
        le=MAX_TTL_SECONDS,
    )
    ttl_seconds: float | None = setting(
        "Memory and disk",
        None,
        "Seconds without use until a session expires, unless it sets its own; default: never.",
        gt=0,
        le=MAX_TTL_SECONDS,
    )
    shutdown_timeout: float = setting(
        "Memory and disk", 30.0, "Seconds allowed for a clean shutdown.", gt=0, le=MAX_TTL_SECONDS
    )
    token_file: FilePath | None = setting(
        "Security",
        None,
        "File with lines 'tenant:SHA-256 of the token in hex'; 'hadakv token add' makes them. Every request then needs "
        "a token.",
    )
    tenant_quota: OptionalSize = setting(
        "Security",
        None,
        "Total size of a tenant's sessions, unless the token file sets another; default: unlimited.",
    )
    tenant_sessions: int | None = setting(
        "Security",
        None,
        "Maximum number of a tenant's sessions, unless the token file sets another; default: unlimited.",
        ge=0,
    )
    tls_cert: FilePath | None = setting("Security", None, "File with the TLS certificate chain, in PEM. Enables TLS.")
    tls_key: FilePath | None = setting(
        "Security", None, "File with the private key of the certificate, in PEM; default: --tls-cert."
    )
    tls_key_password_file: FilePath | None = setting("Security", None, "File with the password of the private key.")
    allowed_hosts: HostNames = setting(
        "Security",
        (),
        "Host names to accept besides IP addresses, localhost and --host, comma-separated; * accepts any.",
    )
    allowed_origins: Origins = setting(
        "Security",
        (),
        "Origins of web pages that may call the service (CORS), comma-separated, for example http://localhost:3000.",
    )
    insecure: bool = setting("Security", False, "Allow a --host other than loopback without --token-file.")
    max_body: MaxBody = setting(
        "Limits", ByteSize(1 << 30), "Maximum size of a request body or a response, at most 4GiB."
    )
    max_body_memory: OptionalSize = setting(
        "Limits", None, "Memory for request bodies being received; default: twice --max-body."
    )
    max_sending: Annotated[ByteSize, Field(ge=1)] = setting(
        "Limits", ByteSize(256 << 20), "Memory for responses being sent. Further large responses wait, then get 503."
    )
    max_header_size: Annotated[ByteSize, Field(ge=1024)] = setting(
        "Limits", ByteSize(64 << 10), "Maximum size of a request line and headers."
    )
    max_queued_jobs: int = setting(
        "Limits", 256, "Maximum number of jobs queued for the device. Further requests get 503.", ge=1
    )
    max_requests: int = setting(
        "Limits", 512, "Maximum number of requests in progress. Further requests get 503.", ge=1
    )
    max_connections: int = setting(
        "Limits", 1024, "Maximum number of connections. When exceeded, the longest idle one is closed.", ge=1
    )
    header_timeout: float = setting(
        "Limits", 10, "Seconds from the first to the last byte of a request's headers.", gt=0, le=MAX_TTL_SECONDS
    )
    stall_timeout: float = setting(
        "Limits",
        20,
        "Seconds a transfer may stay below --min-transfer-rate before it is aborted.",
        gt=0,
        le=MAX_TTL_SECONDS,
    )
    min_transfer_rate: Annotated[ByteSize, Field(ge=1)] = setting(
        "Limits", ByteSize(256 << 10), "Minimum transfer rate of request bodies and responses, in bytes per second."
    )
    log_level: Literal["debug", "info", "warning", "error"] = setting("Log", "info", "Minimum level of log messages.")
    log_format: Literal["json", "console"] | None = setting(
        "Log", None, "Format of the log on stderr; default: console on a terminal, json otherwise."
    )
    access_log: bool = setting("Log", False, "Write one log line per request.")
    quiet: bool = setting("Log", False, "Print nothing at the start and the end. The log is not affected.")

    @model_validator(mode="after")
    def _check_bind(self) -> Self:
        if not (self.uds or self.token_file or self.insecure or is_loopback(self.host)):
            raise ValueError(
                f"refusing to bind {self.host} without tokens: set --token-file, or --insecure to allow everyone"
            )
        return self

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        if self.tls_cert is None and (self.tls_key or self.tls_key_password_file):
            raise ValueError("--tls-key and --tls-key-password-file need --tls-cert")
        if self.max_body_memory is not None and self.max_body_memory < self.max_body:
            raise ValueError("--max-body-memory must be at least --max-body")
        if self.durability == "ack" and self.disk_budget == 0:
            raise ValueError("--durability ack needs a --disk-budget above 0")
        return self

    @property
    def effective_log_format(self) -> Literal["json", "console"]:
        """The log format that is set, or the default for stderr."""
        return self.log_format or ("console" if sys.stderr.isatty() else "json")


def human_size(nbytes: int) -> str:
    """Return a number of bytes as the settings take it, for example 64KiB."""
    return ByteSize(nbytes).human_readable().replace(".0", "")


def is_loopback(host: str) -> bool:
    """Whether the address is reachable from this machine only."""
    if host in LOOPBACK_NAMES:
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
