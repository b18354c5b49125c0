"""Messages for invalid settings. They name the flag or the environment variable, the value and what is expected."""

from collections.abc import Collection

from pydantic_core import ErrorDetails

from hadakv_service.settings import Settings, human_size
from hadakv_service.startup.environment import variable_of

_EXPECTED = {
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_parsing": "true or false",
    "byte_size": "a size such as 512MiB or 4GiB",
    "byte_size_unit": "a size such as 512MiB or 4GiB",
    "literal_error": "one of {expected}",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than_equal": "at most {le}",
}


def setting_error(error: ErrorDetails, flags: Collection[str]) -> str:
    """Return one line about an invalid setting.

    Args:
        error: error of pydantic.
        flags: names of the settings that flags gave. The others came from the environment.
    """
    if not error["loc"]:
        return _own_reason(error)
    name = str(error["loc"][0])
    source = f"--{name.replace('_', '-')}" if name in flags else variable_of(name)
    return f"{source}: {_reason(name, error)}"


def _reason(name: str, error: ErrorDetails) -> str:
    expected = _EXPECTED.get(error["type"])
    if error["type"] == "string_pattern_mismatch":
        expected = "an octal number such as 600"
    if expected is None:
        return _own_reason(error)
    limits = {key: _limit(name, value) for key, value in error.get("ctx", {}).items()}
    return f"must be {expected.format_map(limits)}, not {error['input']!r}"


def _own_reason(error: ErrorDetails) -> str:
    return error["msg"].removeprefix("Value error, ")


def _limit(name: str, value: object) -> str:
    is_size = "Size" in str(Settings.model_fields[name].annotation)
    return human_size(value) if is_size and isinstance(value, int) else f"{value}"
