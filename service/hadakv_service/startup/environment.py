"""Environment variables of the service."""

from collections.abc import Mapping

from hadakv_service.settings import Settings

PREFIX = "HADAKV_"


def variable_of(name: str) -> str:
    """Return the environment variable of a setting."""
    return f"{PREFIX}{name.upper()}"


def from_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the settings that the environment gives, as text."""
    variables = {name: variable_of(name) for name in Settings.model_fields}
    return {name: environment[variable] for name, variable in variables.items() if variable in environment}
