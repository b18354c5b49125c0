"""Warnings about valid settings that are probably mistakes."""

import difflib
from collections.abc import Mapping

from hadakv_kernels.backend import host_memory_nbytes
from hadakv_service.settings import Settings, human_size
from hadakv_service.startup.environment import PREFIX, variable_of

# Variables of the command line and of the compiled codec. They are often set in the service's environment, too.
OTHER_VARIABLES = {"HADAKV_URL", "HADAKV_TOKEN", "HADAKV_CA_FILE", "HADAKV_ISA"}


def setting_warnings(settings: Settings, environment: Mapping[str, str]) -> list[str]:
    """Return one message for each unknown variable, and for a memory budget beyond the memory of this machine."""
    warnings = [_unknown(variable) for variable in sorted(environment) if _is_unknown(variable)]
    memory, budget = host_memory_nbytes(), settings.memory_budget
    if budget is not None and budget > memory:
        warnings.append(
            f"--memory-budget {human_size(budget)} is more than the memory of this machine, {human_size(memory)}"
        )
    return warnings


def _known() -> set[str]:
    return {variable_of(name) for name in Settings.model_fields} | OTHER_VARIABLES


def _is_unknown(variable: str) -> bool:
    return variable.upper().startswith(PREFIX) and variable not in _known()


def _unknown(variable: str) -> str:
    names = [known.removeprefix(PREFIX) for known in sorted(_known())]
    close = difflib.get_close_matches(variable.upper().removeprefix(PREFIX), names, n=1)
    hint = f"; did you mean {PREFIX}{close[0]}?" if close else ""
    return f"ignored the unknown environment variable {variable}{hint}"
