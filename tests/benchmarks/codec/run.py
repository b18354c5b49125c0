"""Benchmark of the codec: run all contenders in turn and print tables.

All contenders run at the same time and take turns, operation by operation, round by round, so that a disturbance of the
machine affects all of them. Figures are medians over rounds. Ratios are medians of ratios within a round.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.codec.contenders import Case, serve
from benchmarks.machine import describe

ELEMENTS, QUICK_ELEMENTS = 1 << 24, 1 << 21
ROUNDS, QUICK_ROUNDS = 9, 3


def cases(elements: int) -> list[Case]:
    """Return every contender, in the order of the table."""
    cores = os.cpu_count() or 1
    ours = [
        Case("engine", elements, threads=1),
        Case("engine", elements, threads=cores),
        *(Case("engine", elements, head_dim=head_dim, threads=cores) for head_dim in (64, 128, 512)),
        *(Case("engine", elements, dtype=dtype, threads=cores) for dtype in ("float16", "bfloat16")),
        *(Case("engine", elements, bits=bits, threads=cores) for bits in (2, 3, 5, 6, 8)),
        Case("backend", elements, threads=cores),
        Case("reference", elements),
    ]
    peers = [Case(kind, elements, bits=bits) for kind in ("mlx", "gguf") for bits in (4, 8)]
    return ours + peers


class Worker:
    """Process of a contender."""

    def __init__(self, case: Case) -> None:
        self.case = case
        script = Path(__file__).with_name("main.py")
        self._process = subprocess.Popen(
            [sys.executable, str(script), "--contender", case.to_json()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def _read(self) -> Any:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.case} ended with {self._process.wait()}")
        return json.loads(line)

    def sizes(self) -> dict[str, Any]:
        """Wait until the contender is ready; return its description."""
        answer: dict[str, Any] = self._read()
        return answer

    def seconds(self, operation: str) -> float:
        """Time one operation."""
        assert self._process.stdin
        self._process.stdin.write(operation + "\n")
        self._process.stdin.flush()
        return float(self._read())

    def close(self) -> None:
        """Let the process exit."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


@dataclass
class Result:
    """Times of a case in seconds: by operation, one for each round."""

    case: Case
    sizes: dict[str, Any]
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def rate(self, operation: str) -> float:
        """Return elements per second."""
        elements: int = self.sizes["elements"]
        return elements / statistics.median(self.seconds[operation])

    def bandwidth(self, operation: str) -> float:
        """Return bytes read and written per second."""
        nbytes: int = self.sizes["value_bytes"] + self.sizes["coded_bytes"]
        return nbytes / statistics.median(self.seconds[operation])

    def speed_relative_to(self, other: "Result", operation: str, of: str) -> float:
        """Return the speed per element relative to the other case's operation `of`."""
        scale: float = self.sizes["elements"] / other.sizes["elements"]
        pairs = zip(self.seconds[operation], other.seconds[of], strict=True)
        return statistics.median(theirs * scale / mine for mine, theirs in pairs)


def measure(elements: int, rounds: int) -> list[Result]:
    """Start all contenders, run all rounds, and stop the contenders."""
    workers = [Worker(case) for case in cases(elements)]
    results = [Result(worker.case, worker.sizes()) for worker in workers]
    for _ in range(rounds):
        for worker, result in zip(workers, results, strict=True):
            for operation in result.sizes["operations"]:
                result.seconds.setdefault(operation, []).append(worker.seconds(operation))
    for worker in workers:
        worker.close()
    return results


def title(case: Case) -> str:
    """Return the first column of a row."""
    names = {
        "engine": "ours",
        "backend": "ours into fresh memory",
        "reference": "ours in NumPy",
        "mlx": "mx.quantize, group 64",
        "gguf": "gguf Q4_0" if case.bits == 4 else "gguf Q8_0",
    }
    if case.kind in ("mlx", "gguf"):
        return f"{names[case.kind]}, {case.bits} bits"
    threads = f", {case.threads} thread{'s' * (case.threads > 1)}" if case.kind != "reference" else ""
    return f"{names[case.kind]}, {case.bits} bits, D {case.head_dim}, {case.dtype}{threads}"


def figures(result: Result, results: list[Result], operation: str) -> dict[str, float | None]:
    """Return the figures of a row for encode or decode. 8 bits are compared with MLX at 8 bits, others at 4."""
    bits = 8 if result.case.bits == 8 else 4
    mlx = next(other for other in results if other.case.kind == "mlx" and other.case.bits == bits)
    bound = f"{operation} bound"
    bounded = bound in result.seconds
    return {
        "melements_per_second": result.rate(operation) / 1e6,
        "gbytes_per_second": result.bandwidth(operation) / 1e9,
        "of_memory_loop": result.speed_relative_to(result, operation, bound) if bounded else None,
        "memory_loop_melements_per_second": result.rate(bound) / 1e6 if bounded else None,
        "times_mlx": result.speed_relative_to(mlx, operation, operation),
    }


def print_table(rows: list[dict[str, Any]], operation: str) -> None:
    """Print the table of an operation."""
    print(f"\n{operation:58} {'M elem/s':>9} {'GB/s':>6} {'of memory loop':>21} {'x MLX':>6}")
    for row in rows:
        f = row[operation]
        bound = ""
        if f["of_memory_loop"] is not None:
            bound = f"{f['of_memory_loop']:.2f} of {f['memory_loop_melements_per_second']:.0f}"
        print(
            f"{row['name']:58} {f['melements_per_second']:9.0f} {f['gbytes_per_second']:6.1f} {bound:>21} "
            f"{f['times_mlx']:6.2f}"
        )


def report(results: list[Result]) -> dict[str, Any]:
    """Return all figures, and the description of the machine."""
    from hadakv_kernels.cpu import CpuBackend

    machine = describe() | {"codec": CpuBackend().detail, "gguf": metadata.version("gguf")}
    rows = [
        {"name": title(result.case), "case": asdict(result.case), "seconds": result.seconds}
        | {operation: figures(result, results, operation) for operation in ("encode", "decode")}
        for result in results
    ]
    return {"machine": machine, "rows": rows}


def run(elements: int, rounds: int, json_file: Path | None) -> None:
    """Measure, print the tables, and write the JSON file if there is one."""
    findings = report(measure(elements, rounds))
    for name, value in findings["machine"].items():
        print(f"{name:12} {value}")
    print(f"{elements:,} elements, {rounds} rounds, medians; the memory loop moves the same bytes and computes nothing")
    for operation in ("encode", "decode"):
        print_table(findings["rows"], operation)
    if json_file:
        json_file.write_text(json.dumps(findings, indent=2) + "\n", "utf-8")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="The codec on the CPU against its peers and a memory loop.")
    parser.add_argument("--quick", action="store_true", help="fewer elements and rounds")
    parser.add_argument("--json", type=Path, help="write all figures to FILE")
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contender:
        serve(Case(**json.loads(arguments.contender)))
    elif arguments.quick:
        run(QUICK_ELEMENTS, QUICK_ROUNDS, arguments.json)
    else:
        run(ELEMENTS, ROUNDS, arguments.json)
