"""Launch of a compiled kernel in several passes. A correct kernel gives equal results in all of them."""

import ctypes
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from metal_emulator.compile.compiler import Compiler, library_of, runtime_library
from metal_emulator.compile.metal_source import KernelText

LANE_ORDERS = {"forward": 0, "reverse": 1, "shuffled": 2}
SUM_ORDERS = {"butterfly": 0, "up": 1, "down": 2, "wide butterfly": 3}


class KernelFault(Exception):
    """The kernel's behaviour is undefined on a GPU, or its result depends on the order of execution."""


@dataclass(frozen=True)
class Pass:
    """One way to run a kernel, of those that a GPU may choose from.

    Attributes:
        lane_order: order of lanes, simdgroups and threadgroups where the language leaves it open.
        seed: seed of the shuffled order.
        sum_order: order of additions in reductions such as simd_sum.
        poison: byte that fills outputs, threadgroup memory and the surroundings of buffers.
        guard: the end of the buffers that touches an inaccessible page.
        strict: whether a simdgroup function that only some lanes call is an error.
        flush_denormals: whether denormals are flushed to zero, as Metal may do.
    """

    lane_order: Literal["forward", "reverse", "shuffled"] = "forward"
    seed: int = 0
    sum_order: Literal["butterfly", "up", "down", "wide butterfly"] = "butterfly"
    poison: int = 0xFF
    guard: Literal["end", "start"] = "end"
    strict: bool = True
    flush_denormals: bool = False


# The poison of the first pass is a NaN in every float type; that of the second is a number that no kernel computes.
TWO_PASSES = (Pass(), Pass("reverse", sum_order="up", poison=0x5A, guard="start"))
THREE_PASSES = (*TWO_PASSES, Pass("shuffled", seed=1, sum_order="wide butterfly", poison=0xA5))


@dataclass(frozen=True)
class Buffer:
    """Buffer argument of a kernel.

    Attributes:
        name: name in messages.
        array: the bytes, in C order; those of an output are replaced.
        writable: whether it is an output.
        initialised: whether an output starts with the bytes of the array, not with poison.
    """

    name: str
    array: np.ndarray[Any, Any] = field(repr=False)
    writable: bool = False
    initialised: bool = False


@dataclass(frozen=True)
class Counts:
    """Numbers of events in a pass."""

    threads: int
    collectives: int
    divergent: int
    barriers: int


class _Buffer(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("bytes", ctypes.c_void_p),
        ("size", ctypes.c_uint64),
        ("writable", ctypes.c_int),
        ("initialised", ctypes.c_int),
    )


class _Launch(ctypes.Structure):
    _fields_ = (
        ("kernel", ctypes.c_void_p),
        ("buffers", ctypes.POINTER(_Buffer)),
        ("buffer_count", ctypes.c_uint),
        ("grid", ctypes.c_uint * 3),
        ("threadgroup", ctypes.c_uint * 3),
        ("lane_order", ctypes.c_int),
        ("seed", ctypes.c_uint),
        ("sum_order", ctypes.c_int),
        ("strict", ctypes.c_int),
        ("flush_denormals", ctypes.c_int),
        ("guard_at_start", ctypes.c_int),
        ("poison", ctypes.c_uint),
        ("cpu_seconds", ctypes.c_uint),
        ("watch", ctypes.c_int),
    )


Size = tuple[int, int, int]
MAX_THREADS = 1024
CPU_SECONDS = 120  # limit for endless loops, more than any test needs

# The runtime has only one scheduler.
_one_at_a_time = threading.Lock()


@dataclass(frozen=True)
class CompiledKernel:
    """Kernel that can be launched."""

    text: KernelText
    compiler: Compiler

    def run_pass(self, buffers: Sequence[Buffer], grid: Size, threadgroup: Size, options: Pass) -> Counts:
        """Launch once, and write the outputs into their arrays.

        Args:
            buffers: arguments, in the order of the kernel's buffer indices.
            grid: threads in each dimension.
            threadgroup: threads of a threadgroup in each dimension.
            options: the way to run.

        Raises:
            KernelFault: the kernel had a fault.
        """
        runtime = _load_runtime(runtime_library(self.compiler))
        kernel = _load(library_of(self.text, self.compiler), f"run_{self.text.name}")
        described = (_Buffer * len(buffers))(*map(_describe, buffers))
        launch = _Launch(
            kernel=kernel,
            buffers=described,
            buffer_count=len(buffers),
            grid=grid,
            threadgroup=threadgroup,
            lane_order=LANE_ORDERS[options.lane_order],
            seed=options.seed,
            sum_order=SUM_ORDERS[options.sum_order],
            strict=options.strict,
            flush_denormals=options.flush_denormals,
            guard_at_start=options.guard == "start",
            poison=options.poison,
            cpu_seconds=CPU_SECONDS,
            watch=not self.compiler.sanitize,
        )
        counts = (ctypes.c_uint64 * 4)()
        with _one_at_a_time:
            failed = runtime.lanes_launch(ctypes.byref(launch))
            failure = runtime.lanes_failure().decode()
            runtime.lanes_counts(counts)
        if failed:
            raise KernelFault(f"{self.text.name}: {failure} ({_words(options)})")
        return Counts(*counts)

    def run(self, buffers: Sequence[Buffer], grid: Size, threadgroup: Size, passes: Sequence[Pass]) -> Counts:
        """Launch once per pass, and compare the outputs of the passes.

        Returns:
            the counts of the last pass.

        Raises:
            KernelFault: the kernel had a fault in a pass, or two passes have different outputs.
        """
        outputs = [buffer for buffer in buffers if buffer.writable]
        starts = [buffer.array.copy() if buffer.initialised else None for buffer in outputs]
        previous: list[np.ndarray[Any, Any]] = []
        for i, options in enumerate(passes):
            for buffer, start in zip(outputs, starts, strict=True):
                if start is not None:
                    buffer.array[...] = start
            counts = self.run_pass(buffers, grid, threadgroup, options)
            for buffer, before in zip(outputs, previous, strict=False):
                self._compare(buffer, before, (passes[i - 1], options))
            previous = [buffer.array.copy() for buffer in outputs] if i + 1 < len(passes) else []
        return counts

    def _compare(self, buffer: Buffer, before: np.ndarray[Any, Any], passes: tuple[Pass, Pass]) -> None:
        old, new = (np.atleast_1d(array).view(np.uint8).reshape(-1) for array in (before, buffer.array))
        differing = np.flatnonzero(old != new)
        if not differing.size:
            return
        byte = int(differing[0])
        place = f"output '{buffer.name}' element {byte // buffer.array.itemsize} of {buffer.array.size}"
        if (old[byte], new[byte]) == (passes[0].poison, passes[1].poison):
            raise KernelFault(f"{self.text.name}: {place} is never written ({differing.size} bytes are not)")
        ways = " and ".join(map(_words, passes))
        raise KernelFault(f"{self.text.name}: {place} differs between {ways} ({differing.size} bytes do)")


def check_sizes(grid: Size, threadgroup: Size) -> None:
    """Check sizes as Metal does.

    Raises:
        ValueError: a size is not positive, or the threadgroup is too large.
    """
    if min(*grid, *threadgroup) <= 0:
        raise ValueError(f"grid {grid} and threadgroup {threadgroup} must be positive")
    if np.prod(threadgroup) > MAX_THREADS:
        raise ValueError(f"threadgroup {threadgroup} has more than {MAX_THREADS} threads")


def _describe(buffer: Buffer) -> _Buffer:
    array = buffer.array
    if not array.flags.c_contiguous:
        raise ValueError(f"buffer '{buffer.name}' is not contiguous")
    label = f"{'output' if buffer.writable else 'input'} '{buffer.name}'".encode()
    return _Buffer(label, array.ctypes.data, array.nbytes, buffer.writable, buffer.initialised)


def _words(options: Pass) -> str:
    return f"{options.lane_order} order, {options.sum_order} sums, poison {options.poison:#x}, guard at {options.guard}"


@cache
def _load_runtime(path: Path) -> ctypes.CDLL:
    # Kernels find the runtime's functions among the process's symbols.
    library = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    library.lanes_failure.restype = ctypes.c_char_p
    return library


@cache
def _load(path: Path, function: str) -> int:
    address = ctypes.cast(getattr(ctypes.CDLL(str(path)), function), ctypes.c_void_p).value
    if address is None:
        raise AttributeError(function)
    return address
