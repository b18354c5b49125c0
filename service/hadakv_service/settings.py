"""What can be set, from flags (`--memory-budget 4GiB`) and the environment (`HADAKV_MEMORY_BUDGET=4GiB`)."""

import ipaddress
import sys
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import ByteSize, Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from hadakv_service.wire import MAX_TTL_SECONDS

LOOPBACK_NAMES = {"localhost"}


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
    ttl_seconds: Annotated[float, Field(gt=0, le=MAX_TTL_SECONDS)] | None = Field(
        None, description="Forget sessions unused for so long, unless they say otherwise; default: never."
    )
    token_file: Path | None = Field(
        None, description="Lines 'tenant:sha256 of token in hex'; when given, every call needs a token."
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
