"""Metal source through clang's C++ for OpenCL, whose address spaces are Metal's, and through rules of Metal's own.

A diagnostic of clang in the kernel's text is a finding: a missing or mixed address space, a double or a literal without
its f, a variable used before it has a value. To that come pointers and references without an address space, which
OpenCL has and Metal has not; variables at program scope outside `constant`; and the calls `divergence` finds.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from clang import cindex

from metal_emulator.compile.compiler import SHIM, Compiler, find_compiler
from metal_emulator.compile.metal_source import KernelText
from metal_emulator.compile.translate import ATTRIBUTE, INCLUDE, replace_threadgroup_variables
from metal_emulator.lint.divergence import divergent_calls

HEADERS = Path(__file__).parent / "headers"
LANGUAGE = ("-x", "clcpp", "-cl-std=clc++2021", "-cl-no-stdinc", "-target", "spir64", "-ferror-limit=0")
# Half precision and unnamed pointers to anywhere, which the check below reports; above all no double precision.
EXTENSIONS = ("-Xclang", "-cl-ext=-all,+cl_khr_fp16,+__opencl_c_generic_address_space")
WARNINGS = (
    "-Wall",
    "-Wextra",
    "-Wconditional-uninitialized",
    "-Wno-unused",
    "-Wno-unused-parameter",
    "-Wno-sign-compare",
)

# How clang numbers the address spaces that are Metal's; 0 is none and 5 what OpenCL makes of a pointer to none.
SPACES = {"device": 1, "threadgroup": 2, "constant": 3, "thread": 4}

# Metal's own pragma, which clang does not know; any other it does not know is a finding.
_METAL_PRAGMA = re.compile(
    r"^[ \t]*#pragma METAL fp (contract\((off|on|fast)\)|math_mode\((safe|relaxed|fast)\))[ \t]*$", re.M
)
_MARKER = re.compile(r'#(?:line)? (\d+) "(.*?)"')
_DECLARATIONS = {
    cindex.CursorKind.VAR_DECL,
    cindex.CursorKind.PARM_DECL,
    cindex.CursorKind.FIELD_DECL,
    cindex.CursorKind.TYPEDEF_DECL,
    cindex.CursorKind.TYPE_ALIAS_DECL,
    cindex.CursorKind.CSTYLE_CAST_EXPR,
    cindex.CursorKind.CXX_REINTERPRET_CAST_EXPR,
    cindex.CursorKind.CXX_STATIC_CAST_EXPR,
}
_INDIRECT = {cindex.TypeKind.POINTER, cindex.TypeKind.LVALUEREFERENCE, cindex.TypeKind.RVALUEREFERENCE}
_ARRAYS = {cindex.TypeKind.CONSTANTARRAY, cindex.TypeKind.INCOMPLETEARRAY, cindex.TypeKind.DEPENDENTSIZEDARRAY}
_FUNCTIONS = {cindex.TypeKind.FUNCTIONPROTO, cindex.TypeKind.FUNCTIONNOPROTO}


@dataclass(frozen=True)
class Finding:
    """What is wrong, and where in the text."""

    file: str
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.message}"


def lint(text: KernelText, variants: Sequence[KernelText] = (), compiler: Compiler | None = None) -> list[Finding]:
    """Everything wrong with a kernel's text, in order of its lines.

    Args:
        text: what Metal will be given.
        variants: others of the same kernel and header. What is read from the text is the same in all of them; what
            clang says of each is found for a hundredth of the time a text by itself takes.
        compiler: whose preprocessor expands its macros.
    """
    code = _as_opencl([text, *variants], compiler or find_compiler())
    places = _places(code)
    name = f"{text.name}.clcpp"
    arguments = [*LANGUAGE, *EXTENSIONS, *WARNINGS, f"-I{HEADERS}", f"-I{SHIM}"]
    unit = _index().parse(name, args=arguments, unsaved_files=[(name, code)])
    found = {(_line(d, name), d.spelling) for d in unit.diagnostics if d.severity >= cindex.Diagnostic.Warning}
    others = {variant.name for variant in variants}
    here = [c for c in unit.cursor.get_children() if c.location.file and c.location.file.name == name]
    roots = [c for c in here if places[c.location.line][0] not in others]
    for root in roots:
        found |= set(_address_spaces(root))
    found |= {(call.line, f"{call.name} under a lane-dependent condition") for call in divergent_calls(roots, name)}
    return [Finding(*places[line], message) for line, message in sorted(found)]


def _line(diagnostic: cindex.Diagnostic, name: str) -> int:
    """Where in the text; 0 for what is found in the headers, which is as wrong."""
    place = diagnostic.location
    return place.line if place.file and place.file.name == name else 0


def _as_opencl(texts: Sequence[KernelText], compiler: Compiler) -> str:
    marked = f'#line 1 "header of {texts[0].name}"\n{texts[0].header}\n'
    marked += "".join(f'#line 1 "{text.name}"\n{text.function}\n' for text in texts)
    variable = "__local {element} (&{name}){extents} = lint_threadgroup_variable<{element}{extents}>()"
    code = replace_threadgroup_variables(compiler.preprocess(INCLUDE.sub("", marked)), variable)
    return '#include "metal_lint.h"\n' + _METAL_PRAGMA.sub("", ATTRIBUTE.sub("", code))


def _places(code: str) -> list[tuple[str, int]]:
    """The file and line each line of the code stands for; libclang does not tell."""
    places, file, line = [("", 0)], "", 0
    for physical in code.splitlines():
        marker = _MARKER.match(physical)
        if marker:
            line, file = int(marker[1]) - 1, marker[2]
        else:
            line += 1
        places.append((file, line))
    return places


@cache
def _index() -> cindex.Index:
    return cindex.Index.create()


def _address_spaces(root: cindex.Cursor) -> Iterator[tuple[int, str]]:
    """Declarations and casts of pointers and references that do not say to where, as Metal wants."""
    for cursor in root.walk_preorder():
        type_ = cursor.type.get_canonical() if cursor.kind in _DECLARATIONS else None
        if type_ is None or type_.kind not in _INDIRECT:
            continue
        if type_.get_pointee().kind not in _FUNCTIONS and not _spaces(type_.get_pointee()) & set(SPACES.values()):
            yield cursor.location.line, f"'{cursor.spelling or cursor.type.spelling}' points to no address space"


def _spaces(type_: cindex.Type) -> set[int]:
    """What is said of the type and, if it is an array, of its elements."""
    said = {type_.get_address_space()}
    return said | _spaces(type_.element_type) if type_.kind in _ARRAYS else said
