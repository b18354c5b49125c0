"""Settings, from command-line flags (`--port 80`) and environment variables (`HADAKV_PORT=80`)."""

import argparse
import ipaddress
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from platformdirs import user_data_path
from pydantic import AfterValidator, BeforeValidator, ByteSize, Field, model_validator
from pydantic_settings import BaseSettings, CliApp, CliSettingsSource, NoDecode, SettingsConfigDict

from hadakv_service.sessions.session import MAX_TTL_SECONDS

LOOPBACK_NAMES = {"localhost"}
_HOST_NAME = re.compile(r"\*|[A-Za-z0-9._-]+")
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s*]+")


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


# Comma-separated, in flags and in environment variables.
CommaSeparated = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]


def user_data_directory() -> Path:
    """Return the platform's data directory of the current user for this service."""
    return user_data_path("hadakv", appauthor=False)


class Settings(BaseSettings):
    """Local HTTP service that stores compressed KV caches of language models, keyed by session."""

    model_config = SettingsConfigDict(
        env_prefix="HADAKV_",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_prog_name="hadakv-service",
        cli_hide_none_type=True,
        extra="forbid",
    )

    host: str = Field(
        "127.0.0.1", description="Address to bind. Addresses other than loopback need --token-file or --insecure."
    )
    port: Annotated[int, Field(ge=0, le=65535, description="Port to bind; 0 selects a free port.")] = 8765
    uds: Path | None = Field(None, description="Path of a Unix domain socket to bind instead of --host and --port.")
    uds_mode: Annotated[
        str, Field(pattern="^0?[0-7]{3}$", description="Permissions of the Unix domain socket, in octal.")
    ] = "600"
    tls_cert: Path | None = Field(None, description="File with the TLS certificate chain, in PEM. Enables TLS.")
    tls_key: Path | None = Field(
        None, description="File with the private key of the certificate, in PEM; default: --tls-cert."
    )
    tls_key_password_file: Path | None = Field(None, description="File with the password of the private key.")
    allowed_hosts: Annotated[CommaSeparated, AfterValidator(_check_host_names)] = Field(
        (),
        description="Host names to accept besides IP addresses, localhost and --host, comma-separated; * accepts any.",
    )
    allowed_origins: Annotated[CommaSeparated, AfterValidator(_check_origins)] = Field(
        (),
        description="Origins of web pages that may call the service (CORS), comma-separated, for example http://localhost:3000.",
    )
    backend: Literal["auto", "metal", "cuda", "cpu"] = Field(
        "auto", description="Backend that runs the codec; auto selects the first available of metal, cuda, cpu."
    )
    threads: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Number of threads of the CPU backend; default: one per processor."
    )
    memory_budget: Annotated[ByteSize, Field(ge=0)] | None = Field(
        None, description="Memory for sessions, for example 4GiB; default: half of the device's memory."
    )
    max_body: ByteSize = Field(
        ByteSize(1 << 30), description="Maximum size of a request body or a response, for example 1GiB."
    )
    max_queued_jobs: Annotated[
        int, Field(ge=1, description="Maximum number of jobs queued for the device. Further requests get 503.")
    ] = 256
    max_body_memory: Annotated[ByteSize, Field(ge=0)] | None = Field(
        None, description="Memory for request bodies being received, for example 4GiB; default: twice --max-body."
    )
    max_header_size: Annotated[ByteSize, Field(ge=1024)] = Field(
        ByteSize(64 << 10), description="Maximum size of a request line and headers."
    )
    max_requests: Annotated[
        int, Field(ge=1, description="Maximum number of requests in progress. Further requests get 503.")
    ] = 512
    max_connections: Annotated[
        int, Field(ge=1, description="Maximum number of connections. When exceeded, the longest idle one is closed.")
    ] = 1024
    header_timeout: Annotated[float, Field(gt=0, le=MAX_TTL_SECONDS)] = Field(
        10, description="Seconds from the first to the last byte of a request's headers."
    )
    stall_timeout: Annotated[float, Field(gt=0, le=MAX_TTL_SECONDS)] = Field(
        20, description="Seconds a transfer may stay below --min-transfer-rate before it is aborted."
    )
    min_transfer_rate: Annotated[ByteSize, Field(ge=1)] = Field(
        ByteSize(256 << 10), description="Minimum transfer rate of request bodies and responses, in bytes per second."
    )
    http_protocol: Literal["hadakv", "uvicorn"] = Field(
        "hadakv",
        description="HTTP protocol implementation. uvicorn: the stock one, without header, stall and pipelining "
        "limits; bodies are copied.",
    )
    ttl_seconds: Annotated[float, Field(gt=0, le=MAX_TTL_SECONDS)] | None = Field(
        None,
        description="Seconds without use until a session expires, unless it sets its own; default: never.",
    )
    data_dir: Path = Field(
        user_data_directory(),  # not a default factory: --help would show its name instead of the path
        description="Directory for sessions on disk: evicted from memory, or kept across restarts.",
    )
    disk_budget: Annotated[ByteSize, Field(ge=0)] | None = Field(
        None,
        description="Disk space for sessions, for example 40GiB; 0 disables the disk; default: half of the free space.",
    )
    durability: Literal["memory", "spill", "ack"] = Field(
        "spill",
        description="Default durability of sessions. memory: lost at exit. spill: saved by checkpoints, when evicted "
        "from memory and at a clean shutdown. ack: saved before every response.",
    )
    checkpoint_seconds: Annotated[float, Field(ge=0, le=MAX_TTL_SECONDS)] = Field(
        30.0, description="Seconds after a change until a spill session is saved in the background; 0 for never."
    )
    shutdown_timeout: Annotated[float, Field(gt=0, description="Seconds allowed for a clean shutdown.")] = 30.0
    token_file: Path | None = Field(
        None,
        description="File with lines 'tenant:SHA-256 of the token in hex'. Every request then needs a token.",
    )
    tenant_quota: Annotated[ByteSize, Field(ge=0)] | None = Field(
        None,
        description="Total size of a tenant's sessions, unless the token file sets another; default: unlimited.",
    )
    tenant_sessions: Annotated[int, Field(ge=0)] | None = Field(
        None,
        description="Maximum number of a tenant's sessions, unless the token file sets another; default: unlimited.",
    )
    insecure: bool = Field(False, description="Allow a --host other than loopback without --token-file.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Minimum level of log messages."
    )
    log_format: Literal["json", "console"] | None = Field(
        None, description="Format of the log on stderr; default: console on a terminal, json otherwise."
    )
    access_log: bool = Field(False, description="Write one log line per request.")

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


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Formatter of `--help` that writes types, sizes and missing defaults for people."""

    _METAVARS: ClassVar[dict[str, str]] = {
        "str": "TEXT",
        "int": "NUMBER",
        "float": "SECONDS",
        "Path": "PATH",
        "ByteSize": "SIZE",
        "tuple[str,...]": "LIST",
    }

    def _metavar_formatter(self, action: argparse.Action, default_metavar: str) -> Callable[[int], tuple[str, ...]]:
        metavar = action.metavar if isinstance(action.metavar, str) else default_metavar
        action.metavar = self._METAVARS.get(metavar, action.metavar)
        return super()._metavar_formatter(action, default_metavar)

    def _get_help_string(self, action: argparse.Action) -> str:
        text = re.sub(r" \(default: (null|\(\))\)$", "", action.help or "")
        if action.metavar != self._METAVARS["ByteSize"]:
            return text
        return re.sub(r"(?<=\(default: )\d+", lambda found: _human_size(int(found[0])), text)


def _human_size(nbytes: int) -> str:
    return ByteSize(nbytes).human_readable().replace(".0", "")


def parse_settings(arguments: Sequence[str] | None = None) -> Settings:
    """Return the settings from command-line arguments and the environment.

    Args:
        arguments: command-line arguments; by default those of the process.

    Raises:
        ValidationError: a value is invalid.
        SystemExit: after `--help`, or if a flag is unknown.
    """
    source: CliSettingsSource[Settings] = CliSettingsSource(Settings, formatter_class=HelpFormatter)
    given = None if arguments is None else list(arguments)
    return CliApp.run(Settings, cli_args=given, cli_settings_source=source)


def is_loopback(host: str) -> bool:
    """Whether the address is reachable from this machine only."""
    if host in LOOPBACK_NAMES:
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
