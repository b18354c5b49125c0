"""A service under a target: how much memory it takes while cases come, and whether it is well at the end."""

from collections.abc import Iterator

from fuzzing.report import Limit, Tally
from hadakv_service.testing import RunningService
from support.contract import Caller
from support.process_memory import resident_nbytes

# By then a service has what it needs for every kind of call.
WARM_CASES = 200


def watched(service: RunningService, limit: Limit, tally: Tally) -> Iterator[int]:
    """The numbers of cases; after the last the service must be ready, and not much larger than when it was warm."""
    before = None
    for number in limit.numbers():
        if number == WARM_CASES:
            before = resident_nbytes(service.process.pid)
        yield number
    if before is not None:
        tally.note_grown(resident_nbytes(service.process.pid) - before)
    with Caller(service.url) as caller:
        if (status := caller.get("/readyz").status) != 200:
            tally.failures.append(f"the service is not ready any more: {status}")
