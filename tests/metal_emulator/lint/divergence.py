"""Finds calls that all lanes of a simdgroup must make together, where only some of them may get to.

A value is lane-dependent if it is computed from a lane's own position, read at an index that is, or assigned where a
lane-dependent condition decides; values from reductions and votes are the same in every lane. A call of a simdgroup
function or barrier, or of a function that makes one, is reported if a lane-dependent condition decides whether it is
made: a branch, a loop, a short circuit, or an earlier return, break or continue.

The analysis errs on the side of reporting. `thread_position_in_grid.x / 32` is lane-dependent to it though it is the
same in all 32 lanes; a kernel says which simdgroup it is with `simdgroup_index_in_threadgroup` and
`threadgroup_position_in_grid`, and what only some lanes need is computed by all and stored by some. A variable once
lane-dependent stays so: the result of a reduction wants a name of its own. Functions are matched by name, members of
structs by their declaration; loads through pointers are as dependent as the pointer and the index, not as what was
stored there.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from clang.cindex import Cursor, CursorKind, TokenKind, TypeKind

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
# The same in every lane, whatever goes in.
UNIFORM = frozenset(
    f"simd_{what}"
    for what in (
        *("sum", "product", "min", "max", "and", "or", "xor", "any", "all"),
        *("ballot", "broadcast", "broadcast_first", "active_threads_mask"),
    )
)

_FUNCTIONS = {CursorKind.FUNCTION_DECL, CursorKind.FUNCTION_TEMPLATE, CursorKind.CXX_METHOD}
_LOOPS = {CursorKind.FOR_STMT, CursorKind.WHILE_STMT, CursorKind.DO_STMT}
_BRANCHES = {CursorKind.IF_STMT, CursorKind.SWITCH_STMT, CursorKind.CONDITIONAL_OPERATOR}
_ASSIGNING = {CursorKind.BINARY_OPERATOR, CursorKind.COMPOUND_ASSIGNMENT_OPERATOR}
_JUMPS = {CursorKind.RETURN_STMT, CursorKind.BREAK_STMT, CursorKind.CONTINUE_STMT}


@dataclass(frozen=True)
class DivergentCall:
    """A call that not every lane may make."""

    line: int
    name: str


@dataclass
class _Program:
    file: str
    functions: dict[str, list[Cursor]]
    collective: set[str] = field(default_factory=set)
    dependent: set[str] = field(default_factory=set)  # declarations, by where they are

    def size(self) -> int:
        return len(self.dependent) + len(self.collective)

    def gathers(self, cursor: Cursor) -> bool:
        """Whether this is a call that all lanes must make together."""
        if cursor.kind != CursorKind.CALL_EXPR:
            return False
        name = _callee(cursor)
        return name in BARRIERS or name.startswith(("simd_", "quad_")) or name in self.collective

    def own(self, member: Cursor) -> Cursor | None:
        """The field an expression names, if the text declares it."""
        field_ = member.referenced if member.kind == CursorKind.MEMBER_REF_EXPR else None
        place = field_.location.file if field_ and field_.kind == CursorKind.FIELD_DECL else None
        return field_ if place and place.name == self.file else None


def divergent_calls(roots: Iterable[Cursor], file: str) -> list[DivergentCall]:
    """What the functions among these declarations of a file, and below them, do wrong."""
    functions: dict[str, list[Cursor]] = {}
    for root in roots:
        for cursor in root.walk_preorder():
            if cursor.kind in _FUNCTIONS and cursor.is_definition():
                functions.setdefault(cursor.spelling, []).append(cursor)
    program = _Program(file, functions)
    everything = [function for overloads in functions.values() for function in overloads]
    before = -1
    while program.size() != before:  # facts only ever grow
        before = program.size()
        for function in everything:
            if any(program.gathers(cursor) for cursor in function.walk_preorder()):
                program.collective.add(function.spelling)
            _learn(function, program, decided=False)
    found = {call for function in everything for call in _Walk(program).function(function)}
    return sorted(found, key=lambda call: (call.line, call.name))


def _learn(cursor: Cursor, program: _Program, decided: bool) -> None:
    """Note what becomes lane-dependent below a cursor; `decided` if a lane-dependent condition leads here."""
    children = list(cursor.get_children())
    position = cursor.kind == CursorKind.PARM_DECL and cursor.spelling in POSITIONS
    if position or (cursor.kind == CursorKind.VAR_DECL and _depends(children, program)):
        program.dependent.add(_key(cursor))
    elif cursor.kind in _ASSIGNING and _assigns(cursor, children) and (decided or _depends(children[1:], program)):
        program.dependent |= _variables(children[0], program)
    elif cursor.kind == CursorKind.UNARY_OPERATOR and decided:
        program.dependent |= _variables(cursor, program)
    elif cursor.kind == CursorKind.CALL_EXPR:
        _learn_call(cursor, program, decided)
    elif cursor.kind == CursorKind.INIT_LIST_EXPR:
        given = zip(_fields(cursor), children, strict=False)
        program.dependent |= {_key(field_) for field_, value in given if _depends([value], program)}
    deciding = decided or (cursor.kind in _LOOPS | _BRANCHES and _depends(_conditions(cursor, children), program))
    for child in children:
        _learn(child, program, deciding)


def _learn_call(call: Cursor, program: _Program, decided: bool) -> None:
    name = _callee(call)
    arguments = list(call.get_arguments())
    some = decided or any(_depends([argument], program) for argument in arguments)
    for function in program.functions.get(name, []):
        parameters = [child for child in function.get_children() if child.kind == CursorKind.PARM_DECL]
        for parameter, argument in zip(parameters, arguments, strict=False):
            if _depends([argument], program):
                program.dependent.add(_key(parameter))
            # What it points to may have been written from any of the others.
            if some and parameter.type.get_canonical().kind in (TypeKind.POINTER, TypeKind.LVALUEREFERENCE):
                program.dependent |= _variables(argument, program)


@dataclass
class _Walk:
    """One function, statement by statement: what leads to each call."""

    program: _Program
    left: bool = False  # some lanes may have returned
    loops: list[bool] = field(default_factory=list)  # of each loop around: some lanes may have left its body

    def function(self, function: Cursor) -> Iterator[DivergentCall]:
        for child in function.get_children():
            if child.kind == CursorKind.COMPOUND_STMT:
                yield from self.visit(child, decided=False)

    def visit(self, cursor: Cursor, decided: bool) -> Iterator[DivergentCall]:
        children = list(cursor.get_children())
        if (decided or self.left or any(self.loops)) and self.program.gathers(cursor):
            yield DivergentCall(cursor.location.line, _callee(cursor))
        if cursor.kind in _JUMPS and decided:
            self._jump(cursor.kind)
        if cursor.kind in _LOOPS:
            yield from self._loop(cursor, children, decided)
            return
        short = cursor.kind == CursorKind.BINARY_OPERATOR and _operator(cursor, children) in ("&&", "||")
        conditional = cursor.kind in _BRANCHES or short
        conditions = children[:1] if short else _conditions(cursor, children)
        deciding = decided or (conditional and _depends(conditions, self.program))
        for child in children:
            yield from self.visit(child, decided if child in conditions else deciding)

    def _loop(self, loop: Cursor, children: Sequence[Cursor], decided: bool) -> Iterator[DivergentCall]:
        deciding = decided or _depends(_conditions(loop, children), self.program)
        self.loops.append(False)
        first = [call for child in children for call in self.visit(child, deciding)]
        # A lane that left in one round is missing in all that follow.
        again = [call for child in children for call in self.visit(child, deciding)] if self.loops[-1] else []
        self.loops.pop()
        yield from first + again

    def _jump(self, kind: CursorKind) -> None:
        if kind == CursorKind.RETURN_STMT or not self.loops:
            self.left = True
        else:
            self.loops[-1] = True


def _depends(cursors: Iterable[Cursor], program: _Program) -> bool:
    return any(_depends_on(cursor, program) for cursor in cursors)


def _depends_on(cursor: Cursor, program: _Program) -> bool:
    if cursor.kind == CursorKind.CALL_EXPR and _callee(cursor) in UNIFORM:
        return False
    if cursor.kind == CursorKind.INIT_LIST_EXPR and _fields(cursor):
        return False  # what its members are is known of each
    named = cursor.referenced if cursor.kind == CursorKind.DECL_REF_EXPR else program.own(cursor)
    if named and _key(named) in program.dependent:
        return True
    return _depends(cursor.get_children(), program)


def _conditions(cursor: Cursor, children: Sequence[Cursor]) -> Sequence[Cursor]:
    """The children of a branch or loop that decide; of a for all but its body, for clang leaves out what is empty."""
    if cursor.kind == CursorKind.DO_STMT:
        return children[1:]
    if cursor.kind == CursorKind.FOR_STMT:
        return children[:-1]
    return children[:1] if cursor.kind in _LOOPS | _BRANCHES else []


def _assigns(cursor: Cursor, children: Sequence[Cursor]) -> bool:
    if len(children) != 2:
        return False
    return cursor.kind == CursorKind.COMPOUND_ASSIGNMENT_OPERATOR or _operator(cursor, children) == "="


def _operator(cursor: Cursor, children: Sequence[Cursor]) -> str:
    """A binary operator's sign: the first token after its left side."""
    end = children[0].extent.end.offset
    return next((token.spelling for token in cursor.get_tokens() if token.extent.start.offset >= end), "")


def _variables(cursor: Cursor, program: _Program) -> set[str]:
    """What an assignment to an expression, or through it, changes: the variable or member it begins with."""
    for inner in cursor.walk_preorder():
        named = inner.referenced if inner.kind == CursorKind.DECL_REF_EXPR else program.own(inner)
        if named:
            return {_key(named)}
    return set()


def _fields(values: Cursor) -> list[Cursor]:
    """The members that braces around values initialise; none if they are an array's or depend on the template."""
    declaration = values.type.get_canonical().get_declaration()
    return [child for child in declaration.get_children() if child.kind == CursorKind.FIELD_DECL]


def _callee(call: Cursor) -> str:
    """The name called; of what depends on the template, the last before the arguments."""
    if call.spelling:
        return str(call.spelling)
    children = list(call.get_children())
    # A binary operator of such values is a call too, and stands between its sides.
    for inner in children[1].get_children() if len(children) > 1 else ():
        if inner.kind == CursorKind.OVERLOADED_DECL_REF and inner.spelling.startswith("operator"):
            return str(inner.spelling)
    depth, name = 0, ""
    for token in children[0].get_tokens() if children else ():
        depth += {"<": 1, ">": -1, ">>": -2}.get(token.spelling, 0)
        if depth == 0 and token.kind == TokenKind.IDENTIFIER:
            name = token.spelling
    return name


def _key(declaration: Cursor) -> str:
    start = declaration.location
    return f"{start.file}:{start.line}:{start.column}:{declaration.spelling}"
