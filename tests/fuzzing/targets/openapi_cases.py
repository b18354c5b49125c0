"""Target "document": schemathesis sends requests by the OpenAPI document and checks the responses against it."""

import os
import re
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from fuzzing.report import Limit, Tally
from hadakv_service.testing import RunningService
from support.services.process_memory import resident_nbytes

FOLDER = Path(__file__).parent
CASES = 100
PHASES = "examples,coverage,fuzzing,stateful"


def run(service: RunningService, limit: Limit, phases: str = PHASES, document: str = "") -> Tally:
    """Try all operations of the service's document, or of another document."""
    tally = Tally("the OpenAPI document")
    before = resident_nbytes(service.process.pid)
    with TemporaryDirectory() as folder:
        log = Path(folder, "calls")
        environment = {**os.environ, "HADAKV_FUZZ_LOG": str(log), "PYTHONPATH": str(FOLDER.parents[1])}
        called = command(service.url, limit, phases, document)
        done = subprocess.run(called, env=environment, cwd=folder, capture_output=True, text=True, check=False)
        for line in log.read_text("utf-8").splitlines() if log.exists() else ():
            status, _, call = line.partition(" ")
            if status == "none":
                tally.record_timeout(call)
            else:
                tally.record(int(status), call)
    tally.record_growth(resident_nbytes(service.process.pid) - before)
    if done.returncode != 0:
        tally.failures += found(done.stdout) or [
            f"schemathesis exited with {done.returncode}: {done.stdout}{done.stderr}"
        ]
    return tally


def command(url: str, limit: Limit, phases: str, document: str = "") -> list[str]:
    """Return the command that runs schemathesis."""
    return [
        *(sys.executable, "-m", "schemathesis.cli", "--no-color", "--config-file", str(FOLDER / "schemathesis.toml")),
        *("run", document or f"{url}/openapi.json", "--url", url, "--phases", phases, "--seed", str(limit.seed)),
        *("--max-examples", str(limit.cases or CASES)),
        *(("--max-time", str(max(1, int(limit.seconds)))) if limit.seconds else ()),
    ]


def found(output: str) -> list[str]:
    """Return the failures in the output of schemathesis, each with its operation."""
    blocks = re.findall(r"^_+ (.+?) _+$(.*?)(?=^_+ .+ _+$|^=+ )", output, re.MULTILINE | re.DOTALL)
    return [f"{call}: {text.strip()}" for call, text in blocks]
