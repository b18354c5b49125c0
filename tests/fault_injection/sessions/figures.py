"""Figures that the service reports during a round: what its checkpoints have saved, and what was deleted for space."""

import re
import threading
import time

import httpx

from fault_injection.report import Tally
from fault_injection.sessions.recorded_calls import Expectations

POLL_SECONDS = 0.03


class Figures(threading.Thread):
    """Thread that polls the metrics of a service until the round is over, or the service ends.

    Args:
        url: URL of the service.
        tally: counters.
        expected: gets the time up to which changes are saved.

    Attributes:
        evictions: number of sessions deleted to make space, at the last poll but one. The log must have them.
    """

    def __init__(self, url: str, tally: Tally, expected: Expectations) -> None:
        super().__init__(daemon=True)
        self.evictions = 0
        self._url = url
        self._tally = tally
        self._expected = expected

    def run(self) -> None:
        """Poll."""
        evictions = 0
        try:
            with httpx.Client(base_url=self._url, timeout=60) as client:
                while not self._expected.over.wait(POLL_SECONDS):
                    asked = time.monotonic()
                    response = client.get("/metrics")
                    if response.status_code != 200:
                        continue
                    text = response.text
                    self.evictions, evictions = evictions, int(_value(text, "hadakv_evictions_total"))
                    # The service has computed it later than asked, so the changes that it means may be older.
                    saved_until = asked - _value(text, "hadakv_checkpoint_lag_seconds")
                    self._expected.saved_until = max(self._expected.saved_until, saved_until)
                    self._tally.add("polls")
        except httpx.TransportError:
            return


def _value(text: str, name: str) -> float:
    found = re.search(rf"^{name} (\S+)$", text, re.MULTILINE)
    assert found, name
    return float(found[1])
