"""Compilation of Metal source to shared objects, many kernels per object, cached by a hash of all inputs."""

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

# More kernels per translation unit save compile time for the headers. Fewer keep all processors busy.
KERNELS_PER_UNIT = 24

# The runtime walks call paths by frame pointers.
COMMON_FLAGS = ("-fPIC", "-fno-omit-frame-pointer", "-fno-exceptions", "-pipe")
RUNTIME_FLAGS = (*COMMON_FLAGS, "-std=c++17", "-O2", "-fvisibility=hidden", "-Wall", "-Wextra")
# Without optimisation: see shim/metal.h. Uninitialised locals get a pattern that is no plausible value.
KERNEL_FLAGS = (
    *(*COMMON_FLAGS, "-std=gnu++14", "-O0", "-w", "-fno-optimize-sibling-calls", "-fno-strict-aliasing"),
    *("-fno-rtti", "-fsigned-char", "-ffp-contract=off", "-ftrivial-auto-var-init=pattern"),
)
# runtime/undefined.cpp replaces the library of these sanitizers, and runtime/accesses.cpp that of -fsanitize=thread.
CHECK_FLAGS = (
    "-fsanitize=bounds,shift,integer-divide-by-zero,signed-integer-overflow,float-cast-overflow,alignment,bool,return",
)
# By `sanitize`. AddressSanitizer needs its own library, loaded before all others: see sanitized().
ACCESS_FLAGS = {False: "-fsanitize=thread", True: "-fsanitize=address"}
GCC_FLAGS = ("-fexcess-precision=16", "-fsingle-precision-constant")
CLANG_FLAGS = ("-Xclang", "-ffloat16-excess-precision=none", "-Xclang", "-cl-single-precision-constant")
SANITIZE = "HADAKV_METAL_SANITIZE"
_HALF_TEST = "_Float16 twice(_Float16 x) { return x * 2; }"


class CompileError(Exception):
    """The compiler rejects a text, or no compiler is found."""


@dataclass(frozen=True)
class Compiler:
    """C++ compiler with half precision.

    Attributes:
        command: path of the compiler.
        is_clang: whether it takes the options of clang, not those of GCC.
        sanitize: whether kernels are built for AddressSanitizer, not for the runtime's own checks of accesses.
    """

    command: str
    is_clang: bool
    sanitize: bool = False

    @cached_property
    def version(self) -> str:
        """Version text of the compiler."""
        return subprocess.run([self.command, "--version"], capture_output=True, text=True, check=True).stdout

    @cached_property
    def runtime_identity(self) -> str:
        """Hash that changes whenever the runtime must be compiled again."""
        return _hash(self.version, *RUNTIME_FLAGS, *_texts(RUNTIME))

    @cached_property
    def identity(self) -> str:
        """Hash that changes whenever kernels must be compiled again."""
        interface = (RUNTIME / "interface.h").read_text()
        return _hash(self.version, *self.kernel_flags, *_texts(SHIM), interface, (HERE / "translate.py").read_text())

    @property
    def kernel_flags(self) -> list[str]:
        """Return the options for kernel text."""
        flags = [*KERNEL_FLAGS, *CHECK_FLAGS, ACCESS_FLAGS[self.sanitize], *DEFINES]
        flags += CLANG_FLAGS if self.is_clang else GCC_FLAGS
        return flags + [f"-I{folder}" for folder in (SHIM, RUNTIME, _mlx_headers())]

    def preprocess(self, text: str) -> str:
        """Expand the macros of a text, without including files."""
        return self._run(["-E", "-undef", "-nostdinc", "-w", *DEFINES, "-x", "c++", "-"], text)

    def compile(self, flags: Sequence[str], sources: Sequence[Path], target: Path) -> None:
        """Compile sources to a shared object. The target file appears atomically."""
        target.parent.mkdir(parents=True, exist_ok=True)
        # The runtime provides the sanitizer functions, so the linker gets no sanitizer options.
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
    """Find the compiler: $HADAKV_METAL_CXX, or the first one with half precision.

    Raises:
        CompileError: no suitable compiler is found.
    """
    named = os.environ.get("HADAKV_METAL_CXX")
    for command in [named] if named else ["g++", "clang++", "c++"]:
        path = shutil.which(command)
        if path and _compiles(path, _HALF_TEST):
            version = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout
            return Compiler(path, "clang" in version, SANITIZE in os.environ)
    raise CompileError("no C++ compiler with half precision: kernels need g++ 12 or clang++ 15, or newer")


def sanitized() -> dict[str, str]:
    """Return the environment for a process whose kernels run with AddressSanitizer.

    Raises:
        CompileError: the compiler has no library of AddressSanitizer.
    """
    compiler = find_compiler()
    name = f"libclang_rt.asan-{os.uname().machine}.so" if compiler.is_clang else "libasan.so"
    command = [compiler.command, f"-print-file-name={name}"]
    library = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    if not Path(library).is_absolute():
        raise CompileError(f"{compiler.command} has no {name}")
    # The runtime handles faults itself, leaks do not matter, and fibers switch stacks without AddressSanitizer's help.
    options = "detect_leaks=0:detect_stack_use_after_return=0:use_sigaltstack=0:" + ":".join(
        f"handle_{signal}=0" for signal in ("segv", "sigbus", "sigill", "sigfpe", "abort")
    )
    return {**os.environ, "LD_PRELOAD": library, "ASAN_OPTIONS": options, SANITIZE: "1"}


def runtime_library(compiler: Compiler) -> Path:
    """Return the runtime as a shared object. Build it if need be."""
    target = CACHE / f"runtime-{compiler.runtime_identity}.so"
    if not target.exists():
        compiler.compile([*RUNTIME_FLAGS, f"-I{RUNTIME}"], sorted(RUNTIME.glob("*.cpp")), target)
    return target


def library_of(text: KernelText, compiler: Compiler) -> Path:
    """Return the shared object with this kernel. Compile it alone unless `build` has compiled it.

    Raises:
        CompileError: the compiler rejects the text; the message is the compiler's.
    """
    link = _link(text, compiler)
    if not link.exists():
        _build_unit([text], compiler)
    return link


def build(texts: Iterable[KernelText], compiler: Compiler, jobs: int | None = None) -> int:
    """Compile kernels that are not in the cache: several per translation unit, and several units at once.

    Returns:
        the number of compiled kernels.

    Raises:
        CompileError: the compiler rejects a unit; the message is the compiler's.
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
