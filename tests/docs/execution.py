"""Runner of the examples: executes the blocks of a page in order and compares the output that the page shows."""

import contextlib
import io
import os
import random
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from docs.markdown import Block
from docs.output import matches

# The port in the text, which is replaced by a free one.
DOCUMENTED_PORT = "8765"
# Below the ports that Linux and macOS choose from, so that no other test is given one of these.
PORTS = range(10_000, 30_000)
COMMAND_SECONDS = 60
LAST_STARTUP_LINE = "API documentation"
STOP_SECONDS = 40
_SHELL_CHARACTERS = set("|&;<>$`\\\"'*?\n")
_SHELL = ("bash", "-euo", "pipefail", "-c")


class ExampleFailed(AssertionError):
    """An example fails, or its output is not the one shown."""


class Runner:
    """Executes blocks as a reader of the page would, in a directory of its own.

    Shell commands and Python snippets share directory and environment. Snippets share one namespace. One service runs
    at a time: the one that a block marked `background` starts, or, on a page without such a block, one that starts
    with the default settings.

    Args:
        page: path of the page, for messages.
        directory: empty directory, also the home directory of all commands.
    """

    def __init__(self, page: Path, directory: Path) -> None:
        self.executed: list[int] = []
        self._page = page
        self._directory = directory
        self._port = str(_free_port())
        self._namespace: dict[str, Any] = {"__name__": "__main__"}
        self._service: subprocess.Popen[str] | None = None
        self._in_process = False

    def run(self, blocks: Sequence[Block]) -> None:
        """Execute the blocks in order. A second call finds the files and sessions of the first one.

        Args:
            blocks: all blocks of the page.

        Raises:
            ExampleFailed: a block fails, or its output is not the one shown.
        """
        if self._service is None and not any(block.marker == "background" for block in blocks):
            self._start("hadakv-service")
        output = None
        for block in blocks:
            if block.is_executed:
                output = self._execute(block)
                self.executed.append(block.line)
            else:
                if output is not None and block.language == "text" and not block.marker:
                    self._compare(block, self._text(block), output)
                output = None

    def close(self) -> None:
        """Stop the service."""
        if self._service is not None:
            _stop(self._service)
            self._service = None

    def environment(self) -> dict[str, str]:
        """Return the environment of all commands: the caller's, without its hadakv settings."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("HADAKV_", "XDG_", "OTEL_"))}
        programs = str(Path(sys.executable).parent)
        return kept | {
            "HOME": str(self._directory),
            "PATH": f"{programs}{os.pathsep}{kept.get('PATH', os.defpath)}",
            "HADAKV_PORT": self._port,
            "HADAKV_URL": f"http://127.0.0.1:{self._port}",
            "TZ": "UTC",
        }

    def _execute(self, block: Block) -> str:
        text = self._text(block)
        if block.marker == "background":
            self.close()
            return self._start(text)
        if block.language == "console":
            self._console(block, text)
            return ""
        return self._python(block, text) if block.language == "python" else self._shell(block, text)

    def _text(self, block: Block) -> str:
        return block.text.replace(DOCUMENTED_PORT, self._port)

    def _shell(self, block: Block, text: str) -> str:
        done = subprocess.run(
            [*_SHELL, text],
            cwd=self._directory,
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )
        if done.returncode:
            raise self._failed(block, f"exit status {done.returncode}:\n{done.stdout}")
        return done.stdout

    def _console(self, block: Block, text: str) -> None:
        """Run each line that begins with `$ ` and compare what follows it; a command may fail.

        The first `hadakv` of a page runs as a program. Later ones run in this process, through the same entry point:
        most of their processor time would be imports.
        """
        if not text.startswith("$ "):
            raise self._failed(block, "a console block begins with `$ `")
        for step in f"\n{text}".split("\n$ ")[1:]:
            command, _, expected = step.partition("\n")
            simple = command.startswith("hadakv ") and not set(command) & _SHELL_CHARACTERS
            if simple and self._in_process:
                got = self._hadakv(shlex.split(command)[1:])
            else:
                got = self._shell(block, f"{{ {command}\n}} || true")
                self._in_process = self._in_process or simple
            self._compare(block, expected, got)

    def _hadakv(self, arguments: list[str]) -> str:
        (program,) = entry_points(group="console_scripts", name="hadakv")
        with self._process_state() as printed, contextlib.suppress(SystemExit):
            program.load()(arguments)
        return printed.getvalue()

    def _python(self, block: Block, text: str) -> str:
        # Empty lines, so that tracebacks name the lines of the page.
        code = compile("\n" * block.line + text, str(self._page), "exec")
        with self._process_state() as printed:
            exec(code, self._namespace)
        return printed.getvalue()

    @contextlib.contextmanager
    def _process_state(self) -> Iterator[io.StringIO]:
        """Give this process the directory, environment and output of a command."""
        outside, printed = dict(os.environ), io.StringIO()
        os.environ.clear()
        os.environ.update(self.environment())
        try:
            with (
                contextlib.chdir(self._directory),
                contextlib.redirect_stdout(printed),
                contextlib.redirect_stderr(printed),
            ):
                yield printed
        finally:
            os.environ.clear()
            os.environ.update(outside)

    def _start(self, command: str) -> str:
        """Start a service and return the lines it prints when it is ready."""
        self._service = subprocess.Popen(
            [*_SHELL, command],
            cwd=self._directory,
            env=self.environment(),
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self._service.stdout is not None
        lines: list[str] = []
        while not (lines and lines[-1].startswith(LAST_STARTUP_LINE)):
            lines.append(self._service.stdout.readline())
            if not lines[-1]:
                self.close()
                raise ExampleFailed(f"{self._page.name}: the service did not start: {command}")
        return "".join(lines)

    def _compare(self, block: Block, expected: str, got: str) -> None:
        if not matches(expected, got):
            raise self._failed(block, f"the page shows\n{expected}\nand the output is\n{got}")

    def _failed(self, block: Block, reason: str) -> ExampleFailed:
        return ExampleFailed(f"{self._page.name}:{block.line}: {reason}")


def _stop(service: "subprocess.Popen[str]") -> None:
    """Stop a service as Ctrl-C does, which reaches every process of the terminal's group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(service.pid, signal.SIGINT)
    try:
        service.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(service.pid, signal.SIGKILL)
        service.wait()
    if service.stdout is not None:
        service.stdout.close()


def _free_port() -> int:
    # Not the module's generator: workers that seed it alike would choose the same port at the same time.
    for port in random.SystemRandom().sample(PORTS, 100):
        with socket.socket() as candidate:
            try:
                candidate.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError("no port is free")
