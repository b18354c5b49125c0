"""Timeouts of a connection: idle, header and stall timeout, and the limits that set them."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits for connections.

    Attributes:
        max_header_nbytes: maximum size of a request line and headers, and of trailers.
        max_connections: maximum number of connections.
        idle_seconds: maximum time without a request.
        header_timeout: maximum time from the first to the last byte of a request head, in seconds.
        stall_timeout: seconds that a body or a response may fall behind `min_bytes_per_second`.
        min_bytes_per_second: minimum transfer rate of bodies and responses.
    """

    max_header_nbytes: int
    max_connections: int
    idle_seconds: float
    header_timeout: float
    stall_timeout: float
    min_bytes_per_second: int


class ProgressTimeout:
    """Timeout of one activity at a time, checked now and then.

    Progress extends the remaining time, but never beyond the full timeout. Progress ahead of schedule is not saved up
    for a later pause.
    """

    __slots__ = ("_activity", "_last_checked", "_last_progress", "_remaining")

    def __init__(self) -> None:
        self._activity: tuple[object, object] = (None, None)
        self._remaining = self._last_checked = self._last_progress = 0.0

    def reset(self) -> None:
        """Forget the current activity."""
        self._activity = (None, None)

    def expired(
        self,
        now: float,
        activity: tuple[object, object],
        progress: float,
        seconds: float,
        *,
        is_blocked: bool = False,
    ) -> bool:
        """Return whether the activity has fallen behind by more than the timeout.

        Args:
            now: time in seconds, by any clock.
            activity: kind of activity and the object it is about. If one of the two is a different object than at the
                last check, the timeout starts again.
            progress: total progress so far, as the seconds that it may take.
            seconds: the timeout: how far the activity may fall behind.
            is_blocked: whether the activity could not proceed. The time since the last check does not count then.
        """
        if activity[0] is not self._activity[0] or activity[1] is not self._activity[1]:
            self._activity, self._remaining = activity, seconds
        else:
            elapsed = 0.0 if is_blocked else now - self._last_checked
            progressed = max(0.0, progress - self._last_progress)
            self._remaining = min(seconds, self._remaining - elapsed + progressed)
        self._last_checked, self._last_progress = now, progress
        return self._remaining < 0


class ConnectionTimeouts:
    """Decides whether the peer of a connection is too slow. The connection monitor has each connection check it.

    Args:
        limits: limits for the connection.
    """

    __slots__ = ("_limits", "_request", "_response")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._request = ProgressTimeout()
        self._response = ProgressTimeout()

    def is_idle_too_long(self, now: float, last_request: object) -> bool:
        """Return whether no request has begun within the idle timeout after the last one."""
        return self._request.expired(now, ("idle", last_request), 0, self._limits.idle_seconds)

    def is_head_late(self, now: float, last_request: object, *, is_blocked: bool) -> bool:
        """Return whether a head is still incomplete after the header timeout. Time while reading is blocked is free."""
        return self._request.expired(now, ("head", last_request), 0, self._limits.header_timeout, is_blocked=is_blocked)

    def is_body_stalled(self, now: float, request: object, received_nbytes: int, *, is_blocked: bool) -> bool:
        """Return whether a body has fallen behind the minimum rate by more than the stall timeout."""
        progress = received_nbytes / self._limits.min_bytes_per_second
        return self._request.expired(
            now, ("body", request), progress, self._limits.stall_timeout, is_blocked=is_blocked
        )

    def stop_request(self) -> None:
        """Stop the timeout of the peer's requests: the service owes it a response."""
        self._request.reset()

    def is_response_stalled(self, now: float, response: object, remaining_nbytes: int) -> bool:
        """Return whether the peer takes a response too slowly, by the minimum rate and the stall timeout."""
        progress = -remaining_nbytes / self._limits.min_bytes_per_second
        return self._response.expired(now, ("response", response), progress, self._limits.stall_timeout)

    def stop_response(self) -> None:
        """Stop the timeout of responses: nothing waits to be sent."""
        self._response.reset()
