"""Translation of Metal source to C++ that compiles against the headers in `shim/`.

Macros are expanded first, so that the later steps also apply to their expansion. Then declarations of threadgroup
variables become requests to the runtime for the threadgroup's copy, attributes are removed, and each kernel gets an
entry function for launches.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import groupby

from metal_emulator.compile.metal_source import ATTRIBUTES, KernelText

PROLOGUE = """\
#include "metal.h"
#include "entry.h"
#include "keywords.h"
#include "mlx/backend/metal/kernels/utils.h"
"""

# Macros that Apple's compiler defines and kernel text may test.
DEFINES = ("-D__METAL__=1", "-D__METAL_VERSION__=320")

INCLUDE = re.compile(r"^[ \t]*#[ \t]*include\b.*$", re.MULTILINE)
ATTRIBUTE = re.compile(r"\[\[(?:[^\[\]]|\[[^\[\]]*\])*\]\]")
_KERNEL = re.compile(r"\[\[\s*kernel\s*\]\]\s*void\s+(\w+)\s*\(")
_INSTANCE = re.compile(
    r"\btemplate\s*\[\[\s*host_name\(\s*\"(\w+)\"\s*\)\s*\]\][^;(]*\bdecltype\(.*?\)\s*([^;]*);", re.DOTALL
)
_PARAMETER = re.compile(r"\[\[\s*(\w+)\s*(?:\(\s*(\d+)\s*\))?\s*\]\]\s*$")
_THREADGROUP = re.compile(r"\bthreadgroup\b(?!_)\s*")
_DECLARATOR = re.compile(r"(\w+)\s*((?:\[.*\]\s*)?)$", re.DOTALL)

Preprocess = Callable[[str], str]


class TranslationError(Exception):
    """The text has a form that this module does not support."""


def translate(texts: Sequence[KernelText], preprocess: Preprocess) -> str:
    """Return one C++ translation unit with all kernels, and an exported function run_<name> for each.

    Args:
        texts: kernels with different names. Kernels with the same header share it.
        preprocess: function that expands macros, as a C++ preprocessor does.
    """
    groups = [(header, list(group)) for header, group in groupby(sorted(texts, key=_header), key=_header)]
    marked = "".join(
        f'#pragma lanes group\n#line 1 "header of {group[0].name}"\n{header}\n'
        + "".join(f'#line 1 "{text.name}"\n{text.function}' for text in group)
        for header, group in groups
    )
    variable = 'auto& {name} = lanes::threadgroup_variable<{element}{extents}, {place}>("{name}")'
    expanded = replace_threadgroup_variables(preprocess(INCLUDE.sub("", marked)), variable)
    parts = expanded.split("#pragma lanes group\n")[1:]
    spaces = (f"namespace group_{i} {{\n{_with_entries(part)}\n}}\n" for i, part in enumerate(parts))
    return PROLOGUE + "".join(spaces)


def _header(text: KernelText) -> str:
    return text.header


def _with_entries(text: str) -> str:
    instances = dict(_INSTANCE.findall(text))
    entries = "".join(
        f'extern "C" void run_{name}(void** buffers) {{ '
        f"lanes::call(&{instances.get(name, name)}, buffers, {', '.join(arguments)}); }}\n"
        for name, arguments in _kernels(text)
    )
    return f'{ATTRIBUTE.sub("", text)}\n#line 1 "entries"\n{entries}'


def _kernels(text: str) -> Iterator[tuple[str, list[str]]]:
    """Yield each kernel's name, and the arguments that the runtime binds to its parameters."""
    for match in _KERNEL.finditer(text):
        end = text.find(") {", match.end())
        parameters = text[match.end() : end].split(",\n")
        yield match[1], [_argument(match[1], parameter) for parameter in parameters]


def _argument(kernel: str, parameter: str) -> str:
    attribute = _PARAMETER.search(parameter)
    if not attribute:
        raise TranslationError(f"{kernel}: parameter without an attribute: {parameter.strip()}")
    if attribute[1] == "buffer":
        return f"lanes::BufferArgument{{{attribute[2]}}}"
    kind = {"uint": "ScalarArgument", "uint3": "TripleArgument"}[ATTRIBUTES[attribute[1]]]
    return f"lanes::{kind}{{&lanes::Builtins::{attribute[1]}}}"


def replace_threadgroup_variables(text: str, by: str) -> str:
    """Replace declarations such as `threadgroup float a[4], b;` by one declaration per variable.

    Args:
        text: text without macros.
        by: format of the declaration, without semicolon; it may use {name}, {element}, {extents} and {place}.
    """
    out, position, place = [], 0, 0
    for match in _THREADGROUP.finditer(text):
        end = declaration_end(text, match.end())
        if end is None:
            continue
        references = []
        for name, element, extents in _declared(text[match.end() : end]):
            references.append(by.format(name=name, element=element, extents=extents, place=place))
            place += 1
        lines = "\n" * text.count("\n", match.start(), end)  # so that messages keep their line numbers
        out += [text[position : match.start()], "; ".join(references), lines]
        position = end
    return "".join(out) + text[position:]


def declaration_end(text: str, start: int) -> int | None:
    """Return the position of the semicolon of a variable's declaration; None for a pointer, a parameter or a cast."""
    closing = {"[": "]", "<": ">", "(": ")"}
    waiting: list[str] = []
    for i in range(start, len(text)):
        c = text[i]
        if waiting and c == waiting[-1]:
            waiting.pop()
        elif c == "[" or (c == "<" and "]" not in waiting) or (c == "(" and (waiting or _after_alignas(text, i))):
            waiting.append(closing[c])
        elif not waiting and c in "*&=(){},":
            if c != ",":
                return None
        elif not waiting and c == ";":
            return i
    return None


def _after_alignas(text: str, position: int) -> bool:
    return text[:position].rstrip().endswith("alignas")


def _declared(declaration: str) -> Iterator[tuple[str, str, str]]:
    """Yield (name, element type, extents) of each variable. alignas is dropped, as every region is aligned enough."""
    declaration = re.sub(r"alignas\s*\([^()]*\)", "", declaration)
    first, *others = _split(declaration)
    declarator = _DECLARATOR.search(first)
    if not declarator:
        raise TranslationError(f"unsupported declaration: threadgroup {declaration};")
    base = first[: declarator.start()].strip()
    yield declarator[1], base, _flat(declarator[2])
    for other in others:
        name, extents = _DECLARATOR.search(other).groups()  # type: ignore[union-attr]
        yield name, base, _flat(extents)


def _flat(extents: str) -> str:
    return " ".join(extents.split())


def _split(text: str) -> Iterable[str]:
    """Split at commas outside brackets."""
    depth, start = 0, 0
    for i, c in enumerate(text):
        depth += (c in "[<(") - (c in "]>)")
        if c == "," and depth == 0:
            yield text[start:i]
            start = i + 1
    yield text[start:]
