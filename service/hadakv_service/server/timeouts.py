"""A timeout that progress extends, up to its initial length."""


class ProgressTimeout:
    """Timeout of one activity at a time, checked now and then.

    Progress extends the remaining time, but never beyond the full timeout. A fast start does not allow a longer stop.
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
