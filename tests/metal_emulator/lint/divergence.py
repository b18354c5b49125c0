"""Finds collective calls that only some lanes of a simdgroup may make.

A value is lane-dependent if it is computed from the lane's own position, read at a lane-dependent index, or assigned
under a lane-dependent condition. Results of reductions and votes are the same in every lane. The analysis reports a
call of a simdgroup function or barrier, or of a function that makes one, if a lane-dependent condition decides whether
it is made: a branch, a loop, a short circuit, or an earlier return, break or continue.

The analysis may report too much, but not too little:

- `thread_position_in_grid.x / 32` is lane-dependent here, although it is the same in all 32 lanes. Kernels use
  `simdgroup_index_in_threadgroup` and `threadgroup_position_in_grid` instead. What only some lanes need is computed by
  all lanes and stored by some.
- A variable that was lane-dependent once stays so. Give the result of a reduction a name of its own.
- Functions are matched by name, struct members by their declaration. A load through a pointer is as dependent as the
  pointer and the index, whatever was stored there.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from clang.cindex import Cursor, CursorKind

from metal_emulator.lint.syntax import Node, function_definitions

POSITIONS = frozenset(
    {
        "thread_index_in_quadgroup",
        "thread_index_in_simdgroup",
        "thread_index_in_threadgroup",
        "thread_position_in_grid",
        "thread_position_in_threadgroup",
    }
)
BARRIERS = frozenset({"threadgroup_barrier", "simdgroup_barrier"})
# Functions whose result is the same in every lane, for any argument.
UNIFORM = frozenset(
    f"simd_{what}"
    for what in (
        *("sum", "product", "min", "max", "and", "or", "xor", "any", "all"),
        *("ballot", "broadcast", "broadcast_first", "active_threads_mask"),
    )
)

_LOOPS = {CursorKind.FOR_STMT, CursorKind.WHILE_STMT, CursorKind.DO_STMT}
_BRANCHES = {CursorKind.IF_STMT, CursorKind.SWITCH_STMT, CursorKind.CONDITIONAL_OPERATOR}
_CONDITIONAL = _LOOPS | _BRANCHES
_ASSIGNING = {CursorKind.BINARY_OPERATOR, CursorKind.COMPOUND_ASSIGNMENT_OPERATOR}
_JUMPS = {CursorKind.RETURN_STMT, CursorKind.BREAK_STMT, CursorKind.CONTINUE_STMT}


@dataclass(frozen=True)
class DivergentCall:
    """A call that some lanes may not make."""

    line: int
    name: str


@dataclass
class _Program:
    file: str
    functions: dict[str, list[Node]]
    collective: set[str] = field(default_factory=set)
    dependent: set[str] = field(default_factory=set)  # keys of lane-dependent declarations

    def size(self) -> int:
        return len(self.dependent) + len(self.collective)

    def is_collective_call(self, node: Node) -> bool:
        """Whether this is a call that all lanes must make together."""
        if node.kind != CursorKind.CALL_EXPR:
            return False
        name = node.callee
        return name in BARRIERS or name.startswith(("simd_", "quad_")) or name in self.collective

    def named(self, node: Node) -> str:
        """Return the key of the variable, or of the member declared in this file, that an expression names."""
        if node.kind == CursorKind.DECL_REF_EXPR:
            return node.variable
        if node.kind == CursorKind.MEMBER_REF_EXPR and node.member[0] == self.file:
            return node.member[1]
        return ""


def divergent_calls(roots: Iterable[Cursor], file: str) -> list[DivergentCall]:
    """Return the divergent calls in the functions among these declarations of a file, and below them."""
    everything = function_definitions(map(Node, roots))
    functions: dict[str, list[Node]] = {}
    for function in everything:
        functions.setdefault(function.spelling, []).append(function)
    program = _Program(file, functions)
    before = -1
    while program.size() != before:  # the sets only grow, so this ends
        before = program.size()
        for function in everything:
            if any(program.is_collective_call(node) for node in function.walk()):
                program.collective.add(function.spelling)
            _learn(function, program, decided=False)
    found = {call for function in everything for call in _Walk(program).function(function)}
    return sorted(found, key=lambda call: (call.line, call.name))


def _learn(node: Node, program: _Program, decided: bool) -> None:
    """Record which declarations below a node are lane-dependent.

    Args:
        node: where to start.
        program: what is known so far.
        decided: whether a lane-dependent condition decides that control gets here.
    """
    children = node.children
    position = node.kind == CursorKind.PARM_DECL and node.spelling in POSITIONS
    if position or (node.kind == CursorKind.VAR_DECL and _depends(children, program)):
        program.dependent.add(node.key)
    elif node.kind in _ASSIGNING and _assigns(node) and (decided or _depends(children[1:], program)):
        program.dependent |= _variables(children[0], program)
    elif node.kind == CursorKind.UNARY_OPERATOR and decided:
        program.dependent |= _variables(node, program)
    elif node.kind == CursorKind.CALL_EXPR:
        _learn_call(node, program, decided)
    elif node.kind == CursorKind.INIT_LIST_EXPR:
        given = zip(node.fields, children, strict=False)
        program.dependent |= {key for key, value in given if _depends([value], program)}
    deciding = decided or (node.kind in _CONDITIONAL and _depends(_conditions(node), program))
    for child in children:
        _learn(child, program, deciding)


def _learn_call(call: Node, program: _Program, decided: bool) -> None:
    overloads = program.functions.get(call.callee, [])
    if not overloads:
        return
    depend = [_depends([argument], program) for argument in call.arguments]
    some = decided or any(depend)
    for function in overloads:
        parameters = [child for child in function.children if child.kind == CursorKind.PARM_DECL]
        for parameter, argument, depends in zip(parameters, call.arguments, depend, strict=False):
            if depends:
                program.dependent.add(parameter.key)
            # The function may write a value of any other argument through a pointer or reference.
            if some and parameter.is_indirect:
                program.dependent |= _variables(argument, program)


@dataclass
class _Walk:
    """Walk through one function in program order, with the conditions that lead to each call."""

    program: _Program
    left: bool = False  # some lanes may have returned
    loops: list[bool] = field(default_factory=list)  # for each enclosing loop: some lanes may have left its body

    def function(self, function: Node) -> Iterator[DivergentCall]:
        for child in function.children:
            if child.kind == CursorKind.COMPOUND_STMT:
                yield from self.visit(child, decided=False)

    def visit(self, node: Node, decided: bool) -> Iterator[DivergentCall]:
        if (decided or self.left or any(self.loops)) and self.program.is_collective_call(node):
            yield DivergentCall(node.line, node.callee)
        if node.kind in _JUMPS and decided:
            self._jump(node.kind)
        if node.kind in _LOOPS:
            yield from self._loop(node, decided)
            return
        short = node.kind == CursorKind.BINARY_OPERATOR and node.operator in ("&&", "||")
        conditions = node.children[:1] if short else _conditions(node)
        deciding = decided or ((short or node.kind in _BRANCHES) and _depends(conditions, self.program))
        for child in node.children:
            yield from self.visit(child, decided if child in conditions else deciding)

    def _loop(self, loop: Node, decided: bool) -> Iterator[DivergentCall]:
        deciding = decided or _depends(_conditions(loop), self.program)
        self.loops.append(False)
        first = [call for child in loop.children for call in self.visit(child, deciding)]
        # A lane that left in one iteration is missing in all later ones, so walk through the body again.
        again = [call for child in loop.children for call in self.visit(child, deciding)] if self.loops[-1] else []
        self.loops.pop()
        yield from first + again

    def _jump(self, kind: CursorKind) -> None:
        if kind == CursorKind.RETURN_STMT or not self.loops:
            self.left = True
        else:
            self.loops[-1] = True


def _depends(nodes: Iterable[Node], program: _Program) -> bool:
    return any(_depends_on(node, program) for node in nodes)


def _depends_on(node: Node, program: _Program) -> bool:
    if node.kind == CursorKind.CALL_EXPR and node.callee in UNIFORM:
        return False
    if node.kind == CursorKind.INIT_LIST_EXPR and node.fields:
        return False  # each member is tracked separately
    if program.named(node) in program.dependent:
        return True
    return _depends(node.children, program)


def _conditions(node: Node) -> Sequence[Node]:
    """Return the children of a branch or loop that decide. For a `for`, all but the body: clang omits empty parts."""
    if node.kind == CursorKind.DO_STMT:
        return node.children[1:]
    if node.kind == CursorKind.FOR_STMT:
        return node.children[:-1]
    return node.children[:1] if node.kind in _CONDITIONAL else []


def _assigns(node: Node) -> bool:
    if len(node.children) != 2:
        return False
    return node.kind == CursorKind.COMPOUND_ASSIGNMENT_OPERATOR or node.operator == "="


def _variables(node: Node, program: _Program) -> set[str]:
    """Return the variable or member that an assignment to an expression, or through it, changes: its first one."""
    for inner in node.walk():
        named = program.named(inner)
        if named:
            return {named}
    return set()
