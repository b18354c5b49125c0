"""Monitoring of a fuzzed service: memory growth, and readiness at the end."""

from collections.abc import Iterator

from fuzzing.report import Limit, Tally
from hadakv_service.testing import RunningService
from support.contract import Caller
from support.services.process_memory import resident_nbytes

# Number of cases after which the memory of a service should not grow much.
WARM_CASES = 200


def monitored(service: RunningService, limit: Limit, tally: Tally) -> Iterator[int]:
    """Yield the numbers of cases. Then check that the service is ready and has not grown much since warm-up."""
    before = None
    for number in limit.numbers():
        if number == WARM_CASES:
            before = resident_nbytes(service.process.pid)
        yield number
    if before is not None:
        tally.record_growth(resident_nbytes(service.process.pid) - before)
    with Caller(service.url) as caller:
        if (status := caller.get("/readyz").status) != 200:
            tally.failures.append(f"the service is not ready at the end: {status}")
