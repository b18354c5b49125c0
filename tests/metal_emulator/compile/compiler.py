"""Compiles Metal source into shared objects, many kernels to one, and keeps them by the hash of all that went in."""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

from metal_emulator.compile.metal_source import KernelText
from metal_emulator.compile.translate import DEFINES, translate

HERE = Path(__file__).parent
RUNTIME, SHIM = HERE.parent / "runtime", HERE.parent / "shim"
CACHE = Path(os.environ.get("HADAKV_METAL_CACHE", HERE.parents[2] / "build" / "metal"))

# More to a translation unit saves the headers' second or so each time; fewer keeps every processor busy.
KERNELS_PER_UNIT = 24

# The walk of a lane's call path needs frame pointers.
COMMON_FLAGS = ("-fPIC", "-fno-omit-frame-pointer", "-fno-exceptions", "-pipe")
RUNTIME_FLAGS = (*COMMON_FLAGS, "-std=c++17", "-O2", "-fvisibility=hidden", "-Wall", "-Wextra")
# Unoptimised: see shim/metal.h. Locals start as a pattern that no computation mistakes for a value.
KERNEL_FLAGS = (
    *(*COMMON_FLAGS, "-std=gnu++14", "-O0", "-w", "-fno-optimize-sibling-calls", "-fno-strict-aliasing"),
    *("-fno-rtti", "-fsigned-char", "-ffp-contract=off", "-ftrivial-auto-var-init=pattern"),
)
# Reported by runtime/undefined.cpp, not by the sanitizer's own library; so are those of -fsanitize=thread, which
# runtime/accesses.cpp takes.
CHECK_FLAGS = (
    "-fsanitize=bounds,shift,integer-divide-by-zero,signed-integer-overflow,float-cast-overflow,alignment,bool,return",
)
# The second needs its own library, loaded before all others: see sanitized().
ACCESS_FLAGS = {False: "-fsanitize=thread", True: "-fsanitize=address"}
GCC_FLAGS = ("-fexcess-precision=16", "-fsingle-precision-constant")
CLANG_FLAGS = ("-Xclang", "-ffloat16-excess-precision=none", "-Xclang", "-cl-single-precision-constant")
SANITIZE = "HADAKV_METAL_SANITIZE"
_HALF_TEST = "_Float16 twice(_Float16 x) { return x * 2; }"


class CompileError(Exception):
    """The compiler rejects a text, or there is no compiler."""


@dataclass(frozen=True)
class Compiler:
    """A C++ compiler that knows half precision.

    Attributes:
        command: its path.
        is_clang: which family its options are of.
        sanitize: kernels are built for AddressSanitizer, in place of the runtime's own watch over accesses.
    """

    command: str
    is_clang: bool
    sanitize: bool = False

    @cached_property
    def version(self) -> str:
        """What it says of itself."""
        return subprocess.run([self.command, "--version"], capture_output=True, text=True, check=True).stdout

    @cached_property
    def runtime_identity(self) -> str:
        """Changes whenever the runtime has to be compiled again."""
        return _hash(self.version, *RUNTIME_FLAGS, *_texts(RUNTIME))

    @cached_property
    def identity(self) -> str:
        """Changes whenever kernels have to be compiled again."""
        interface = (RUNTIME / "interface.h").read_text()
        return _hash(self.version, *self.kernel_flags, *_texts(SHIM), interface, (HERE / "translate.py").read_text())

    @property
    def kernel_flags(self) -> list[str]:
        """Options for kernel text."""
        flags = [*KERNEL_FLAGS, *CHECK_FLAGS, ACCESS_FLAGS[self.sanitize], *DEFINES]
        flags += CLANG_FLAGS if self.is_clang else GCC_FLAGS
        return flags + [f"-I{folder}" for folder in (SHIM, RUNTIME, _mlx_headers())]

    def preprocess(self, text: str) -> str:
        """The text with its macros expanded; nothing is included."""
        return self._run(["-E", "-undef", "-nostdinc", "-w", *DEFINES, "-x", "c++", "-"], text)

    def compile(self, flags: Sequence[str], sources: Sequence[Path], target: Path) -> None:
        """Sources to a shared object, which appears complete or not at all."""
        target.parent.mkdir(parents=True, exist_ok=True)
        # The runtime has what the objects need of the sanitizers, so linking is not told of them.
        link = ["-shared", *(["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else [])]
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            objects = [str(Path(folder) / f"{source.stem}.o") for source in sources]
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                list(
                    pool.map(lambda source, made: self._run([*flags, "-c", str(source), "-o", made]), sources, objects)
                )
            self._run([*link, *objects, "-o", f"{folder}/library"])
            (Path(folder) / "library").replace(target)

    def _run(self, arguments: Sequence[str], text: str | None = None) -> str:
        done = subprocess.run([self.command, *arguments], input=text, capture_output=True, text=True, check=False)
        if done.returncode:
            raise CompileError(done.stderr[:8000])
        return done.stdout


@cache
def find_compiler() -> Compiler:
    """The compiler to use: $HADAKV_METAL_CXX, or the first that knows half precision.

    Raises:
        CompileError: there is none.
    """
    named = os.environ.get("HADAKV_METAL_CXX")
    for command in [named] if named else ["g++", "clang++", "c++"]:
        path = shutil.which(command)
        if path and _compiles(path, _HALF_TEST):
            version = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout
            return Compiler(path, "clang" in version, SANITIZE in os.environ)
    raise CompileError("no C++ compiler with half precision: kernels need g++ 12 or clang++ 15, or newer")


def sanitized() -> dict[str, str]:
    """The environment for a process whose kernels AddressSanitizer watches.

    Raises:
        CompileError: the compiler has no such library.
    """
    compiler = find_compiler()
    name = f"libclang_rt.asan-{os.uname().machine}.so" if compiler.is_clang else "libasan.so"
    command = [compiler.command, f"-print-file-name={name}"]
    library = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    if not Path(library).is_absolute():
        raise CompileError(f"{compiler.command} has no {name}")
    # Faults and leaks are not its business here, and fibers change stacks behind its back.
    options = "detect_leaks=0:detect_stack_use_after_return=0:use_sigaltstack=0:" + ":".join(
        f"handle_{signal}=0" for signal in ("segv", "sigbus", "sigill", "sigfpe", "abort")
    )
    return {**os.environ, "LD_PRELOAD": library, "ASAN_OPTIONS": options, SANITIZE: "1"}


def runtime_library(compiler: Compiler) -> Path:
    """The runtime as a shared object, built if need be."""
    target = CACHE / f"runtime-{compiler.runtime_identity}.so"
    if not target.exists():
        compiler.compile([*RUNTIME_FLAGS, f"-I{RUNTIME}"], sorted(RUNTIME.glob("*.cpp")), target)
    return target


def library_of(text: KernelText, compiler: Compiler) -> Path:
    """The shared object that has this kernel, compiled alone unless `build` did it before.

    Raises:
        CompileError: with what the compiler says.
    """
    link = _link(text, compiler)
    if not link.exists():
        _build_unit([text], compiler)
    return link


def build(texts: Iterable[KernelText], compiler: Compiler, jobs: int | None = None) -> int:
    """Compile those not compiled yet, several to a translation unit and several units at once.

    Returns:
        how many were compiled.

    Raises:
        CompileError: with what the compiler says of the first unit it rejects.
    """
    missing = list({text: None for text in texts if not _link(text, compiler).exists()})
    missing.sort(key=lambda text: (text.header, text.name))
    units = [missing[i : i + KERNELS_PER_UNIT] for i in range(0, len(missing), KERNELS_PER_UNIT)]
    with ThreadPoolExecutor(jobs or os.cpu_count()) as pool:
        list(pool.map(lambda unit: _build_unit(unit, compiler), units))
    return len(missing)


def _build_unit(texts: Sequence[KernelText], compiler: Compiler) -> None:
    code = translate(texts, compiler.preprocess)
    target = CACHE / f"unit-{_hash(compiler.identity, code)}.so"
    source = target.with_suffix(".cpp")
    CACHE.mkdir(parents=True, exist_ok=True)
    source.write_text(code)
    compiler.compile(compiler.kernel_flags, [source], target)
    for text in texts:
        _point(_link(text, compiler), target.name)


def _link(text: KernelText, compiler: Compiler) -> Path:
    return CACHE / f"{text.name[:80]}-{_hash(compiler.identity, text.header, text.function)}.so"


def _point(link: Path, target: str) -> None:
    with tempfile.TemporaryDirectory(dir=link.parent) as folder:
        new = Path(folder) / "link"
        new.symlink_to(target)
        new.replace(link)


def _compiles(command: str, text: str) -> bool:
    arguments = [command, "-x", "c++", "-fsyntax-only", "-"]
    return subprocess.run(arguments, input=text, capture_output=True, text=True, check=False).returncode == 0


def _mlx_headers() -> Path:
    import mlx.core

    return Path(mlx.core.__file__).parent / "include"


def _texts(folder: Path) -> list[str]:
    return [path.read_text() for path in sorted(folder.rglob("*")) if path.is_file()]


def _hash(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:20]
