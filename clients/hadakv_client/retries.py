"""Retries without I/O: which failed calls are made again, and when.

A flow is a generator that returns the result of a call. It yields a `Request` and receives a `Response`, or a
`TransportError` is thrown into it. It yields a `Sleep` and receives None. The synchronous and the asynchronous client
run the same flows.
"""

import random
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TypeVar

from hadakv_client.errors import Busy, TransportError
from hadakv_client.protocol import Call, Request, Response

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Sleep:
    """Wait before the next step.

    Attributes:
        seconds: duration.
    """

    seconds: float


Step = Request | Sleep
Flow = Generator[Step, Response | None, T]


@dataclass(frozen=True, slots=True)
class Retries:
    """Retry policy with exponential backoff and jitter.

    A call is retried if it was not sent, or if the service was busy and sent Retry-After. An idempotent call is also
    retried if its connection broke or it timed out.

    Attributes:
        limit: maximum number of retries after the first attempt.
        initial_backoff_seconds: maximum backoff before the first retry. It doubles with each retry.
        max_backoff_seconds: maximum backoff. A call is not retried if the service asks for a longer wait.
        random: returns a number from 0 to 1 for the jitter, so that rejected clients do not retry at the same time.
    """

    limit: int = 3
    initial_backoff_seconds: float = 0.1
    max_backoff_seconds: float = 10.0
    random: Callable[[], float] = random.random

    @classmethod
    def of(cls, retries: "int | Retries") -> "Retries":
        """Return a policy; an integer is the limit."""
        return retries if isinstance(retries, Retries) else cls(retries)

    def delay(self, error: TransportError | Busy, attempt: int, request: Request) -> float | None:
        """Return the seconds to wait before the next attempt, or None if the call must not be retried.

        Args:
            error: error of this attempt.
            attempt: number of this attempt, from 0.
            request: request of this attempt.
        """
        if attempt >= self.limit:
            return None
        longest = min(self.initial_backoff_seconds * 2.0 ** min(attempt, 64), self.max_backoff_seconds)
        # Half of the backoff is fixed, so that a service that restarts has time.
        backoff = longest * (0.5 + self.random() / 2)
        if isinstance(error, TransportError):
            return backoff if request.idempotent or not error.sent else None
        if error.retry_after is None or error.retry_after > self.max_backoff_seconds:
            return None
        return error.retry_after + backoff


def with_retries(call: Call[T], retries: Retries) -> Flow[T]:
    """Make a call, and retry it where that is safe.

    Raises:
        HadakvError: the last attempt failed.
    """
    parse, attempt = call.parse, 0
    while True:
        try:
            response = yield call.request
            assert response is not None
            return parse(response)
        except (TransportError, Busy) as error:
            delay = retries.delay(error, attempt, call.request)
            if delay is None:
                raise
            if isinstance(error, TransportError) and error.sent:
                parse = call.parse_retry or call.parse
        yield Sleep(delay)
        attempt += 1
