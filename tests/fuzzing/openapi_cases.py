"""The OpenAPI document, tried by schemathesis: what it says is sent, what is answered is compared with what it says."""

import os
import re
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from fuzzing.report import Limit, Tally
from hadakv_service.testing import RunningService
from support.process_memory import resident_nbytes

FOLDER = Path(__file__).parent
CASES = 100
PHASES = "examples,coverage,fuzzing,stateful"


def run(service: RunningService, limit: Limit, phases: str = PHASES, document: str = "") -> Tally:
    """Try all operations, of the service's own document or of another one."""
    tally = Tally("the OpenAPI document")
    before = resident_nbytes(service.process.pid)
    with TemporaryDirectory() as folder:
        log = Path(folder, "calls")
        environment = {**os.environ, "HADAKV_FUZZ_LOG": str(log), "PYTHONPATH": str(FOLDER.parent)}
        called = command(service.url, limit, phases, document)
        done = subprocess.run(called, env=environment, cwd=folder, capture_output=True, text=True, check=False)
        for line in log.read_text("utf-8").splitlines() if log.exists() else ():
            status, _, call = line.partition(" ")
            if status == "none":
                tally.note_hang(call)
            else:
                tally.note(int(status), call)
    tally.note_grown(resident_nbytes(service.process.pid) - before)
    if done.returncode != 0:
        tally.failures += found(done.stdout) or [
            f"schemathesis ended with {done.returncode}: {done.stdout}{done.stderr}"
        ]
    return tally


def command(url: str, limit: Limit, phases: str, document: str = "") -> list[str]:
    """How schemathesis is called."""
    return [
        *(sys.executable, "-m", "schemathesis.cli", "--no-color", "--config-file", str(FOLDER / "schemathesis.toml")),
        *("run", document or f"{url}/openapi.json", "--url", url, "--phases", phases, "--seed", str(limit.seed)),
        *("--max-examples", str(limit.cases or CASES)),
        *(("--max-time", str(max(1, int(limit.seconds)))) if limit.seconds else ()),
    ]


def found(said: str) -> list[str]:
    """The failures that schemathesis tells of, each with the call that shows it."""
    blocks = re.findall(r"^_+ (.+?) _+$(.*?)(?=^_+ .+ _+$|^=+ )", said, re.MULTILINE | re.DOTALL)
    return [f"{call}: {text.strip()}" for call, text in blocks]
