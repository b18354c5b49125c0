"""Command `status`."""

from typing import TYPE_CHECKING

from hadakv_cli import output
from hadakv_cli.options import Json

if TYPE_CHECKING:
    from hadakv_client import Client


def show_status(client: "Client", as_json: Json = False) -> None:
    """Show version, backend, budgets, sessions and uptime of the service."""
    status = client.status()
    if as_json:
        output.print_json(status)
    else:
        output.print_fields(output.describe_status(status))
