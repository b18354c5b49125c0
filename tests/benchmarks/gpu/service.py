"""The service on the GPU beside the service on the CPU: one bulk append, one token, a range read back.

    python tests/benchmarks/gpu/service.py [--quick]

Medians over rounds in which each backend took its turn; the codec is the real one.
"""

import argparse
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

if __name__ == "__main__":
    # This script's folder would hide the standard library's http behind one of its files.
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import mlx.core as mx

from benchmarks.http.clients import HttpCaller
from benchmarks.http.figures import median, percentile, speed, table
from benchmarks.http.payloads import BULK, STEP
from benchmarks.machine import describe
from hadakv_client import Client
from hadakv_service.testing import RunningService, running_service

MILLISECOND = 1e3


class Reader:
    """Reads a whole session back as float16, through our own client."""

    def __init__(self, service: RunningService) -> None:
        self._client = Client(service.url)

    def call(self) -> None:
        """Read."""
        found = self._client.session(f"{BULK.name}-0").read(form="float16")
        assert found.k.shape == BULK.tensors[0].shape

    def close(self) -> None:
        """Close the client."""
        self._client.close()


def seconds(callers: Mapping[str, HttpCaller | Reader], rounds: int) -> dict[str, list[float]]:
    """Each caller's time in each round, after two to warm up."""
    samples: dict[str, list[float]] = {name: [] for name in callers}
    for _ in range(rounds + 2):
        for name, caller in callers.items():
            start = time.perf_counter()
            caller.call()
            samples[name].append(time.perf_counter() - start)
    return {name: times[2:] for name, times in samples.items()}


def report(title: str, samples: dict[str, list[float]], nbytes: int) -> str:
    """A table: each backend's median, 99th percentile, throughput and how many times as fast as the CPU it is."""
    rows = [
        [
            name,
            f"{median(times) * MILLISECOND:.2f}",
            f"{percentile(times, 99) * MILLISECOND:.2f}",
            f"{nbytes / median(times) / 1e9:.2f}",
            f"{speed(times, samples['cpu']):.2f}",
        ]
        for name, times in samples.items()
    ]
    return table(title, ["", "p50 ms", "p99 ms", "GB/s", "of CPU"], rows)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few rounds")
    few = parser.parse_args().quick
    print("\n".join(f"{name}: {value}" for name, value in describe().items()), end="\n\n")
    with ExitStack() as stack:
        names = ["metal" if mx.metal.is_available() else "cuda", "cpu"]
        services = {
            name: stack.enter_context(running_service("--backend", name, "--memory-budget", "8GiB")) for name in names
        }
        print("\n".join(service.startup_line for service in services.values()), end="\n\n")
        bulk = {name: HttpCaller(service.url, BULK, fresh=True) for name, service in services.items()}
        step = {name: HttpCaller(service.url, STEP) for name, service in services.items()}
        up = len(BULK.body) >> 20
        print(report(f"Append of {up} MiB to a new session", seconds(bulk, 5 if few else 31), len(BULK.body)))
        print(report(f"Append of one token, {STEP.layers} layers", seconds(step, 50 if few else 500), len(STEP.body)))
        readers = {name: Reader(service) for name, service in services.items()}
        print(report(f"Read of {up} MiB as float16, our client", seconds(readers, 3 if few else 11), len(BULK.raw)))
        for caller in (*bulk.values(), *step.values(), *readers.values()):
            caller.close()


if __name__ == "__main__":
    main()
