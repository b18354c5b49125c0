"""Command line of the service: flags, `--help` in groups, and errors that name the flag and the value.

Nothing heavy is imported here, so that a wrong flag is reported at once.
"""

import argparse
import difflib
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Never, get_args, get_origin

from pydantic import ByteSize, ValidationError
from pydantic.fields import FieldInfo

from hadakv_service import __version__
from hadakv_service.settings import Group, Settings, human_size
from hadakv_service.startup.environment import from_environment
from hadakv_service.startup.messages import setting_error

USAGE_ERROR = 2
_METAVARS = {ByteSize: "SIZE", int: "NUMBER", float: "SECONDS", Path: "PATH", str: "TEXT", tuple: "LIST"}
_DESCRIPTION = """\
Local HTTP service that stores compressed KV caches of language models, keyed by session.

Every option is also an environment variable: --max-body 1GiB is HADAKV_MAX_BODY=1GiB.
Sizes take units such as 64KiB, 512MiB, 4GiB.
"""
_EXAMPLES = """\
examples:
  hadakv serve                                            on http://127.0.0.1:8765, for this user
  hadakv serve --memory-budget 4GiB --disk-budget 40GiB
  hadakv serve --host 0.0.0.0 --token-file tokens         for other machines, with tokens
"""


def parse_settings(arguments: Sequence[str] | None = None) -> Settings:
    """Return the settings from flags, then environment variables, then defaults.

    Args:
        arguments: command-line arguments; by default those of the process.

    Raises:
        ValidationError: a value is invalid.
        SystemExit: after `--help` and `--version`, or if a flag is unknown.
    """
    return _validated(_flags(arguments))


def settings_or_exit() -> Settings:
    """Return the settings of this process, like `parse_settings`.

    Raises:
        SystemExit: a setting is invalid. Each error is one line on stderr.
    """
    flags = _flags(None)
    try:
        return _validated(flags)
    except ValidationError as error:
        for each in error.errors():
            print(f"hadakv: {setting_error(each, flags)}", file=sys.stderr)
        sys.exit(USAGE_ERROR)


def _flags(arguments: Sequence[str] | None) -> dict[str, Any]:
    flags: dict[str, Any] = vars(argument_parser().parse_args(arguments))
    return flags


def _validated(flags: Mapping[str, Any]) -> Settings:
    return Settings.model_validate({**from_environment(os.environ), **flags})


class ArgumentParser(argparse.ArgumentParser):
    """Parser that prints an error in one line, with the flag that was probably meant."""

    def error(self, message: str) -> Never:
        """Print the error and exit with 2."""
        print(f"hadakv: {message}; see {self.prog} --help", file=sys.stderr)
        sys.exit(USAGE_ERROR)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse the arguments, and reject unknown ones."""
        options, unknown = self.parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}{self._meant(unknown)}")
        return options

    def _meant(self, unknown: Sequence[str]) -> str:
        flag = next((each.partition("=")[0] for each in unknown if each.startswith("--")), "")
        close = difflib.get_close_matches(flag, self._option_string_actions, n=1, cutoff=0.7)
        return f"; did you mean {close[0]}?" if close else ""


def argument_parser() -> ArgumentParser:
    """Return the parser with one flag for each setting. Flags that are not given are not in its result."""
    parser = ArgumentParser(
        _program_name(),
        usage="%(prog)s [OPTIONS]",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
        formatter_class=_HelpFormatter,
        argument_default=argparse.SUPPRESS,
        add_help=False,
        allow_abbrev=False,
    )
    groups = {name: parser.add_argument_group(name) for name in get_args(Group)}
    for name, field in Settings.model_fields.items():
        _add_flag(groups[group_of(field)], name, field)
    other = parser.add_argument_group("Help")
    other.add_argument("-h", "--help", action="help", help="Show this help and exit.")
    other.add_argument(
        "--version", action="version", version=f"hadakv {__version__}", help="Show the version and exit."
    )
    return parser


def group_of(field: FieldInfo) -> str:
    """Return the group of a setting.

    Raises:
        KeyError: the field was not made by `settings.setting`.
    """
    extra = field.json_schema_extra
    if not isinstance(extra, Mapping) or "group" not in extra:
        raise KeyError(f"a setting lacks its group: {field.description}")
    return str(extra["group"])


class _HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Formatter with a wider column for flags."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32)


def _program_name() -> str:
    name = Path(sys.argv[0]).name
    return {"hadakv serve": "hadakv serve", "__main__.py": "python -m hadakv_service"}.get(name, "hadakv-service")


def _add_flag(group: Any, name: str, field: FieldInfo) -> None:
    flag = f"--{name.replace('_', '-')}"
    kind = _kind(field.annotation)
    text = f"{field.description}{_default_text(field)}".replace("%", "%%")
    if kind is bool:
        group.add_argument(flag, action=argparse.BooleanOptionalAction, help=text)
    elif get_origin(kind) is Literal:
        group.add_argument(flag, metavar="|".join(get_args(kind)), help=text)
    else:
        action = "append" if kind is tuple else "store"
        group.add_argument(flag, action=action, metavar=_METAVARS[kind], help=text)


def _kind(annotation: Any) -> Any:
    """Return the type of a setting without None, limits and parameters."""
    if get_origin(annotation) is Annotated:
        return _kind(get_args(annotation)[0])
    if isinstance(annotation, UnionType) or (get_origin(annotation) is not None and type(None) in get_args(annotation)):
        return _kind(next(each for each in get_args(annotation) if each is not type(None)))
    return tuple if get_origin(annotation) is tuple else annotation


def _default_text(field: FieldInfo) -> str:
    default = field.default
    if default is None or default == () or isinstance(default, bool):
        return ""
    if isinstance(default, float):
        return f" (default: {default:g})"
    return f" (default: {human_size(default) if isinstance(default, ByteSize) else default})"
