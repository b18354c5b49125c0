"""Signals that end the service."""

import os
import signal
from types import SimpleNamespace
from typing import Any, cast

import pytest
import uvicorn

from hadakv_service.server import server as module
from hadakv_service.server.server import EXIT_INTERRUPTED, Server
from hadakv_service.settings import Settings


def test_second_sigint_during_the_handler_of_the_first_exits(monkeypatch: pytest.MonkeyPatch) -> None:
    app = cast(Any, SimpleNamespace(state=SimpleNamespace()))
    server = Server(uvicorn.Config(app), Settings(disk_budget=0), cast(Any, None), print, print)
    monkeypatch.setattr(module, "_exit_after", print)
    monkeypatch.setattr(os, "_exit", exit_with)
    monkeypatch.setattr(server, "_open_requests", lambda: server.handle_exit(signal.SIGINT, None))

    with pytest.raises(SystemExit) as exited:
        server.handle_exit(signal.SIGINT, None)

    assert exited.value.code == EXIT_INTERRUPTED


def exit_with(status: int) -> None:
    raise SystemExit(status)
