"""Targets that need no service: inputs of the parser and of a connection, found by atheris where there is one.

atheris has no wheels but for Linux on x86-64. Elsewhere the same inputs are changed in the same ways, but nobody is led
to those that reach something new.
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
# The longest input; a large body has to fit.
LONGEST = 400_000

Outcome = Callable[[bytes], str]
Mutated = Callable[[bytes, random.Random], bytes]


@contextmanager
def target(name: str) -> Iterator[tuple[Outcome, Mutated]]:
    """What judges an input of "parse" or "protocol", and what changes one."""
    # Not before atheris is ready to compile what it is to watch.
    from fuzzing import parse, protocol

    if name == "parse":
        yield parse.outcome, parse.mutated
    else:
        with closing(protocol.Peer()) as peer:
            yield peer.outcome, protocol.mutated


def seeds(name: str, seed: int) -> list[bytes]:
    """Inputs to begin with."""
    from fuzzing import parse, protocol

    return parse.SEEDS if name == "parse" else protocol.seeds(seed)


def run(name: str, limit: Limit) -> Tally:
    """Try inputs."""
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
    """Count inputs of one outcome, which may be several statuses."""
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
        tally.note_grown(int(peak[1]) - int(begun[1]) << 20)
    if "no interesting inputs" in done.stderr:
        tally.failures.append("atheris saw nothing of what ran: the sources have no counters")
    if done.returncode != 0:
        tally.failures.append(f"ended with {done.returncode}: {(done.stdout + done.stderr)[-3000:]}")


def _options(limit: Limit, folder: str) -> list[str]:
    return [
        *(f"-seed={limit.seed}", f"-max_len={LONGEST}", "-mutate_depth=2", "-print_final_stats=1", "-verbosity=1"),
        *(f"-timeout={TIMEOUT_SECONDS}", f"-rss_limit_mb={MEMORY_MIB}", f"-artifact_prefix={folder}/"),
        *((f"-runs={limit.cases}",) if limit.cases else ()),
        *((f"-max_total_time={max(1, int(limit.seconds))}",) if limit.seconds else ()),
    ]
