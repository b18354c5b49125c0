"""Whether what somebody does takes too long, told from a look at it now and then."""


class ProgressTimeout:
    """How long the same thing may still go on without coming further: what comes is worth time, but none to save up."""

    __slots__ = ("_came", "_left", "_looked", "_of")

    def __init__(self) -> None:
        self._of: tuple[object, object] = (None, None)
        self._left = self._looked = self._came = 0.0

    def reset(self) -> None:
        """Nothing is under way."""
        self._of = (None, None)

    def expired(
        self, now: float, of: tuple[object, object], came: float, seconds: float, *, held: bool = False
    ) -> bool:
        """Whether what is under way has fallen behind by more than it may.

        Args:
            now: on any clock.
            of: what is under way, and of what; it is another thing once one of them is another object.
            came: how far it has come, in the seconds that this may take.
            seconds: how far it may fall behind.
            held: it could not go on by itself, so that the time since the last look does not count.
        """
        if of[0] is not self._of[0] or of[1] is not self._of[1]:
            self._of, self._left = of, seconds
        else:
            spent = 0.0 if held else now - self._looked
            self._left = min(seconds, self._left - spent + max(0.0, came - self._came))
        self._looked, self._came = now, came
        return self._left < 0
