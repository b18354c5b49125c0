"""Targets without a service process: the parser and the connection. atheris guides them if it is installed.

atheris has wheels for Linux on x86-64 only. Elsewhere inputs are mutated in the same ways, without coverage guidance.
"""

import base64
import json
import random
import re
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from fuzzing.report import Limit, Tally

GUIDED = find_spec("atheris") is not None
SCRIPT = Path(__file__).with_name("guided.py")
TIMEOUT_SECONDS = 20
MEMORY_MIB = 1024
# Large enough for a large body.
MAX_INPUT_NBYTES = 400_000

Outcome = Callable[[bytes], str]
Mutated = Callable[[bytes, random.Random], bytes]


@contextmanager
def target(name: str) -> Iterator[tuple[Outcome, Mutated]]:
    """Return the function that judges an input of "parse" or "protocol", and the one that mutates it."""
    # Imported here, because atheris must instrument these modules first.
    from fuzzing.targets import parse, protocol

    if name == "parse":
        yield parse.outcome, parse.mutated
    else:
        with closing(protocol.Peer()) as peer:
            yield peer.outcome, protocol.mutated


def seeds(name: str, seed: int) -> list[bytes]:
    """Return the initial inputs."""
    from fuzzing.targets import parse, protocol

    return parse.SEEDS if name == "parse" else protocol.seeds(seed)


def run(name: str, limit: Limit) -> Tally:
    """Run a target."""
    tally = Tally(f"{name}, in process" + (", guided" if GUIDED else ""))
    (_guided if GUIDED else _unguided)(name, limit, tally)
    return tally


def _unguided(name: str, limit: Limit, tally: Tally) -> None:
    begun, rng = seeds(name, limit.seed), random.Random(limit.seed)
    with target(name) as (outcome, mutated):
        for _ in limit.numbers():
            data = rng.choice(begun)
            for _ in range(rng.randint(0, 3)):
                data = mutated(data, rng)
            try:
                count(tally, outcome(data))
            except Exception:
                tally.cases += 1
                tally.failures.append(f"{traceback.format_exc()}input {base64.b64encode(data[:10_000])!r}")


def count(tally: Tally, outcome: str, times: int = 1) -> None:
    """Count inputs of one outcome. It may consist of several statuses."""
    tally.cases += times
    for part in outcome.split() or ["nothing"]:
        tally.outcomes[part] += times


def _guided(name: str, limit: Limit, tally: Tally) -> None:
    with TemporaryDirectory() as folder:
        corpus, told = Path(folder, "corpus"), Path(folder, "told")
        corpus.mkdir()
        for number, seed in enumerate(seeds(name, limit.seed)):
            (corpus / str(number)).write_bytes(seed)
        command = [sys.executable, str(SCRIPT), name, str(told), *_options(limit, folder), str(corpus)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        for outcome, times in json.loads(told.read_text("utf-8")).items() if told.exists() else ():
            count(tally, outcome, times)
    begun = re.search(r"INITED .*rss: (\d+)Mb", done.stderr)
    peak = re.search(r"stat::peak_rss_mb:\s*(\d+)", done.stderr)
    if begun and peak:
        tally.record_growth(int(peak[1]) - int(begun[1]) << 20)
    if "no interesting inputs" in done.stderr:
        tally.failures.append("atheris found no coverage: the sources are not instrumented")
    if done.returncode != 0:
        tally.failures.append(f"exited with {done.returncode}: {(done.stdout + done.stderr)[-3000:]}")


def _options(limit: Limit, folder: str) -> list[str]:
    return [
        *(f"-seed={limit.seed}", f"-max_len={MAX_INPUT_NBYTES}", "-mutate_depth=2"),
        *("-print_final_stats=1", "-verbosity=1"),
        *(f"-timeout={TIMEOUT_SECONDS}", f"-rss_limit_mb={MEMORY_MIB}", f"-artifact_prefix={folder}/"),
        *((f"-runs={limit.cases}",) if limit.cases else ()),
        *((f"-max_total_time={max(1, int(limit.seconds))}",) if limit.seconds else ()),
    ]
