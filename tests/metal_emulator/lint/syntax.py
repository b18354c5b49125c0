"""Syntax tree of kernel text, copied from libclang once.

The bindings of libclang create new Python objects for every visit of a child. The analysis visits the tree many times,
so it works on this copy, which also caches what it reads from libclang.
"""

from collections.abc import Iterable, Iterator
from functools import cached_property

from clang.cindex import Cursor, CursorKind, TokenKind, TypeKind


class Node:
    """One node of the tree.

    Attributes:
        cursor: libclang's node.
        kind: its kind.
        children: its child nodes.
    """

    def __init__(self, cursor: Cursor) -> None:
        self.cursor = cursor
        self.kind = cursor.kind
        self.children = [Node(child) for child in cursor.get_children()]

    def walk(self) -> Iterator["Node"]:
        """Yield this node and all nodes below it, in preorder."""
        yield self
        for child in self.children:
            yield from child.walk()

    @cached_property
    def spelling(self) -> str:
        """Name of the declaration or reference."""
        return str(self.cursor.spelling)

    @cached_property
    def line(self) -> int:
        """Line in the text."""
        return int(self.cursor.location.line)

    @cached_property
    def key(self) -> str:
        """Identity of a declaration: its position and name."""
        return declaration_key(self.cursor)

    @cached_property
    def is_definition(self) -> bool:
        """Whether a declaration is a definition."""
        return bool(self.cursor.is_definition())

    @cached_property
    def is_indirect(self) -> bool:
        """Whether the type is a pointer or an lvalue reference."""
        return self.cursor.type.get_canonical().kind in (TypeKind.POINTER, TypeKind.LVALUEREFERENCE)

    @cached_property
    def variable(self) -> str:
        """Key of the variable that an expression names; empty if it names none."""
        named = self.cursor.referenced if self.kind == CursorKind.DECL_REF_EXPR else None
        return declaration_key(named) if named else ""

    @cached_property
    def member(self) -> tuple[str, str]:
        """File and key of the struct member that an expression names; empty if it names none."""
        named = self.cursor.referenced if self.kind == CursorKind.MEMBER_REF_EXPR else None
        place = named.location.file if named and named.kind == CursorKind.FIELD_DECL else None
        return (place.name, declaration_key(named)) if place else ("", "")

    @cached_property
    def fields(self) -> list[str]:
        """Keys of the members that an initializer list fills; empty for arrays and dependent types."""
        declaration = self.cursor.type.get_canonical().get_declaration()
        members = (child for child in declaration.get_children() if child.kind == CursorKind.FIELD_DECL)
        return [declaration_key(member) for member in members]

    @cached_property
    def arguments(self) -> list["Node"]:
        """Arguments of a call."""
        return [Node(argument) for argument in self.cursor.get_arguments()]

    @cached_property
    def operator(self) -> str:
        """Sign of a binary operator: the first token after its left side."""
        end = self.children[0].cursor.extent.end.offset
        tokens = self.cursor.get_tokens()
        return next((str(token.spelling) for token in tokens if token.extent.start.offset >= end), "")

    @cached_property
    def callee(self) -> str:
        """Name of the called function. In a dependent expression, it is the last name before the arguments."""
        if self.spelling:
            return self.spelling
        # A binary operator of dependent operands is a call too. Its name is between the operands.
        for inner in self.children[1].children if len(self.children) > 1 else ():
            if inner.kind == CursorKind.OVERLOADED_DECL_REF and inner.spelling.startswith("operator"):
                return inner.spelling
        depth, name = 0, ""
        for token in self.children[0].cursor.get_tokens() if self.children else ():
            depth += {"<": 1, ">": -1, ">>": -2}.get(token.spelling, 0)
            if depth == 0 and token.kind == TokenKind.IDENTIFIER:
                name = str(token.spelling)
        return name


def declaration_key(declaration: Cursor) -> str:
    """Return the identity of a declaration: its position and name."""
    start = declaration.location
    return f"{start.file}:{start.line}:{start.column}:{declaration.spelling}"


def function_definitions(roots: Iterable[Node]) -> list[Node]:
    """Return all function definitions among these nodes, and below them."""
    kinds = {CursorKind.FUNCTION_DECL, CursorKind.FUNCTION_TEMPLATE, CursorKind.CXX_METHOD}
    return [node for root in roots for node in root.walk() if node.kind in kinds and node.is_definition]
