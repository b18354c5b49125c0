"""WriteOperation: base of operations that reserve memory."""

from hadakv_service.storage.memory_budget import Reservation


class WriteOperation:
    """An operation that reserves memory in `prepare` and commits it in `complete`."""

    _reservation: Reservation | None = None

    def roll_back(self) -> None:
        """Release the reservation. Do nothing if there is none, or if it was committed."""
        if self._reservation:
            self._reservation.release()
