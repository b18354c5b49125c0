"""Lint of Metal source: clang's C++ for OpenCL, which has the same address spaces, and additional rules of Metal.

Every diagnostic of clang in the kernel's text is a finding: a missing or mixed address space, a double or a literal
without f, an uninitialised variable. Further findings are pointers and references without an address space, which
OpenCL allows and Metal does not; variables at program scope outside `constant`; and the calls from `divergence`.
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
# Enable half precision and generic pointers, which the check below reports. Disable double precision.
EXTENSIONS = ("-Xclang", "-cl-ext=-all,+cl_khr_fp16,+__opencl_c_generic_address_space")
WARNINGS = (
    "-Wall",
    "-Wextra",
    "-Wconditional-uninitialized",
    "-Wno-unused",
    "-Wno-unused-parameter",
    "-Wno-sign-compare",
)

# Clang's numbers of Metal's address spaces. 0 is none, and 5 is OpenCL's generic address space.
SPACES = {"device": 1, "threadgroup": 2, "constant": 3, "thread": 4}

# Metal's pragma, which clang does not know. Any other unknown pragma is a finding.
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
    """One problem, and its place in the text."""

    file: str
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.message}"


def lint(text: KernelText, variants: Sequence[KernelText] = (), compiler: Compiler | None = None) -> list[Finding]:
    """Return all findings in a kernel's text, in the order of its lines.

    Args:
        text: the text that Metal gets.
        variants: other variants of the same kernel and header. Only clang checks them, because the other rules find
            the same in all variants. This takes a hundredth of the time of a separate text.
        compiler: compiler whose preprocessor expands macros.
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
    """Return the line in the text, or 0 for a diagnostic in the headers."""
    place = diagnostic.location
    return place.line if place.file and place.file.name == name else 0


def _as_opencl(texts: Sequence[KernelText], compiler: Compiler) -> str:
    marked = f'#line 1 "header of {texts[0].name}"\n{texts[0].header}\n'
    marked += "".join(f'#line 1 "{text.name}"\n{text.function}\n' for text in texts)
    variable = "__local {element} (&{name}){extents} = lint_threadgroup_variable<{element}{extents}>()"
    code = replace_threadgroup_variables(compiler.preprocess(INCLUDE.sub("", marked)), variable)
    return '#include "metal_lint.h"\n' + _METAL_PRAGMA.sub("", ATTRIBUTE.sub("", code))


def _places(code: str) -> list[tuple[str, int]]:
    """Return the original file and line of each line of the code, which libclang does not provide."""
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
    """Yield declarations and casts of pointers and references that lack the address space that Metal requires."""
    for cursor in root.walk_preorder():
        type_ = cursor.type.get_canonical() if cursor.kind in _DECLARATIONS else None
        if type_ is None or type_.kind not in _INDIRECT:
            continue
        if type_.get_pointee().kind not in _FUNCTIONS and not _spaces(type_.get_pointee()) & set(SPACES.values()):
            yield cursor.location.line, f"'{cursor.spelling or cursor.type.spelling}' points to no address space"


def _spaces(type_: cindex.Type) -> set[int]:
    """Return the address spaces of a type and, if it is an array, of its elements."""
    said = {type_.get_address_space()}
    return said | _spaces(type_.element_type) if type_.kind in _ARRAYS else said
