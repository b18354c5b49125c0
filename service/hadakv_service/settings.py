"""What can be set, from flags (`--memory-budget 4GiB`) and the environment (`HADAKV_MEMORY_BUDGET=4GiB`)."""

import ipaddress
import re
import sys
from pathlib import Path
from typing import Annotated, Literal, Self

from platformdirs import user_data_path
from pydantic import AfterValidator, BeforeValidator, ByteSize, Field, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from hadakv_service.sessions.session import MAX_TTL_SECONDS

LOOPBACK_NAMES = {"localhost"}
_HOST_NAME = re.compile(r"\*|[A-Za-z0-9._-]+")
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s*]+")


def _split(words: str | tuple[str, ...] | list[str]) -> tuple[str, ...]:
    listed = [words] if isinstance(words, str) else words
    return tuple(word.lower() for each in listed for word in each.replace(",", " ").split())


def _host_names(words: tuple[str, ...]) -> tuple[str, ...]:
    for word in words:
        if not _HOST_NAME.fullmatch(word):
            raise ValueError(f"{word!r} is no name by itself, without scheme, port and path")
    return words


def _origins(words: tuple[str, ...]) -> tuple[str, ...]:
    for word in words:
        if not _ORIGIN.fullmatch(word):
            raise ValueError(f"{word!r} is not like https://example.org or http://localhost:3000")
    return words


# Separated by commas, in a flag and in the environment alike.
Words = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]


def users_data_directory() -> Path:
    """Where this user's programs keep their data."""
    return user_data_path("hadakv", appauthor=False)


class Settings(BaseSettings):
    """Keep the KV caches of language models compressed, keyed by session, behind HTTP."""

    model_config = SettingsConfigDict(
        env_prefix="HADAKV_",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_prog_name="python -m hadakv_service",
        cli_hide_none_type=True,
        extra="forbid",
    )

    host: str = Field("127.0.0.1", description="Address to bind. Anything but loopback needs a token file.")
    port: Annotated[int, Field(ge=0, le=65535, description="Port to bind; 0 takes a free one.")] = 8765
    uds: Path | None = Field(None, description="Unix domain socket to bind instead of host and port.")
    uds_mode: Annotated[str, Field(pattern="^0?[0-7]{3}$", description="Who may connect to that, in octal.")] = "600"
    tls_cert: Path | None = Field(None, description="Certificate chain in PEM; when given, the service speaks TLS.")
    tls_key: Path | None = Field(None, description="The certificate's private key in PEM; default: in the same file.")
    tls_key_password_file: Path | None = Field(None, description="File that has the private key's password.")
    allowed_hosts: Annotated[Words, AfterValidator(_host_names)] = Field(
        (), description="Names that requests may be for, besides addresses, localhost and --host; * is any."
    )
    allowed_origins: Annotated[Words, AfterValidator(_origins)] = Field(
        (), description="Origins of other sites whose pages may call, for example http://localhost:3000."
    )
    backend: Literal["auto", "metal", "cuda", "cpu"] = Field(
        "auto", description="Where the codec runs; auto is the first of the others that this machine has."
    )
    threads: Annotated[int, Field(ge=1)] | None = Field(
        None, description="Threads of the CPU backend; default: every processor."
    )
    memory_budget: Annotated[ByteSize, Field(ge=0)] | None = Field(
        None, description="Bytes that sessions may take, for example 4GiB; default: half of what the device can hold."
    )
    max_body: ByteSize = Field(ByteSize(1 << 30), description="Largest request body or range read, for example 1GiB.")
    queue: Annotated[int, Field(ge=1, description="Requests that may wait for the device.")] = 256
    max_receiving: Annotated[ByteSize, Field(ge=0)] | None = Field(
        None, description="Bytes of bodies that may be on their way in at once; default: two of the largest."
    )
    max_header_size: Annotated[ByteSize, Field(ge=1024)] = Field(
        ByteSize(64 << 10), description="Maximum size of a request line and headers."
    )
    max_requests: Annotated[int, Field(ge=1, description="Requests that may be under way at once.")] = 512
    max_connections: Annotated[int, Field(ge=1, description="Connections; beyond, the longest idle one goes.")] = 1024
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
        None, description="Forget sessions unused for so long, unless they say otherwise; default: never."
    )
    data_dir: Path = Field(
        users_data_directory(),  # no factory: of that --help would have nothing but the name
        description="Directory for what has no room in memory and for what outlives the process.",
    )
    disk_budget: Annotated[ByteSize, Field(ge=0)] | None = Field(
        None, description="Bytes that sessions may take there; 0 keeps nothing on disk; default: half of what is free."
    )
    durability: Literal["memory", "spill", "ack"] = Field(
        "spill",
        description="What outlives the process of sessions that do not say: nothing; what had no room in memory, and "
        "all after an orderly end; or all that was ever answered.",
    )
    grace: Annotated[float, Field(gt=0, description="Seconds to end in when told to.")] = 30.0
    token_file: Path | None = Field(
        None, description="Lines 'tenant:sha256 of token in hex'; when given, every call needs a token."
    )
    tenant_quota: Annotated[ByteSize, Field(ge=0)] | None = Field(
        None, description="Bytes that a tenant's sessions may take, unless the token file says otherwise; default: any."
    )
    tenant_sessions: Annotated[int, Field(ge=0)] | None = Field(
        None, description="Sessions a tenant may have, unless the token file says otherwise; default: any number."
    )
    insecure: bool = Field(False, description="Allow binding beyond loopback without tokens.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Log level.")
    log_format: Literal["json", "console"] | None = Field(
        None, description="Form of the log on stderr; default: console at a terminal, json elsewhere."
    )
    access_log: bool = Field(False, description="Log each request.")

    @model_validator(mode="after")
    def _refuse_open_bind(self) -> Self:
        if not (self.uds or self.token_file or self.insecure or is_loopback(self.host)):
            raise ValueError(
                f"refusing to bind {self.host} without a token: give --token-file, or --insecure to let everyone in"
            )
        return self

    @model_validator(mode="after")
    def _refuse_what_does_not_go_together(self) -> Self:
        if self.tls_cert is None and (self.tls_key or self.tls_key_password_file):
            raise ValueError("--tls-key and --tls-key-password-file need --tls-cert")
        if self.max_receiving is not None and self.max_receiving < self.max_body:
            raise ValueError("--max-receiving must have room for a body of --max-body")
        if self.durability == "ack" and self.disk_budget == 0:
            raise ValueError("durability ack needs a disk budget")
        return self

    @property
    def log_form(self) -> Literal["json", "console"]:
        """The form that was asked for, or the one that suits where stderr goes."""
        return self.log_format or ("console" if sys.stderr.isatty() else "json")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches that address."""
    if host in LOOPBACK_NAMES:
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
