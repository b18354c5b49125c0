"""Check after a restart: read every session and compare it with the expected tokens."""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from fault_injection.report import Tally, Violation
from fault_injection.sessions.model import Append, KnownSession, PendingCall, State
from hadakv_client import Client, InsufficientStorage, Range, Session, SessionNotFound, StoredAppend
from hadakv_kernels import Encoded


def appended(known: KnownSession, append: Append, answer: StoredAppend) -> int:
    """Check the response to an append.

    Returns:
        Number of bytes compared.

    Raises:
        Violation: the response has a wrong position, length or content.
    """
    expected = (append.position, len(append.numbers), append.position + len(append.numbers))
    if (answer.position, answer.tokens, answer.length) != expected:
        found = (answer.position, answer.tokens, answer.length)
        raise Violation(f"{known.name}: append returned position, tokens, length {found}, expected {expected}")
    nbytes, wrong = known.pool.difference(append.layers, append.numbers, answer.k, answer.v)
    if wrong:
        raise Violation(f"{known.name}: response to the append at {append.position}: {wrong}")
    return nbytes


def send(session: Session, known: KnownSession, append: Append) -> StoredAppend:
    """Send an append."""
    k, v = known.pool.values(append.layers, append.numbers)
    answer = session.append(k, v, layer=append.layers.start, position=append.position)
    assert isinstance(answer, StoredAppend)
    return answer


def handle(client: Client, known: KnownSession) -> Session:
    """Return a handle of the session that has its codecs and no cached state."""
    k, v = known.pool.shape.codecs
    return client.session(known.name, {"k": k, "v": v})


@dataclass(frozen=True)
class Part:
    """Tokens read from consecutive layers of one length."""

    layers: slice
    content: Range[Encoded]


class Check:
    """Comparison of the sessions of a service with the expected ones.

    Args:
        client: client of the service.
        tally: counters.
        exact: every `spill` session must be complete, as after a clean shutdown. Otherwise only `ack` sessions must
            be complete, and a `spill` session may be shorter or missing.
        evicting: space is short, so `spill` sessions may have been evicted and repeated appends may be rejected.
        restarted: the process has been restarted, so `memory` sessions must be gone.
    """

    def __init__(
        self, client: Client, tally: Tally, *, exact: bool, evicting: bool = False, restarted: bool = True
    ) -> None:
        self._client = client
        self._tally = tally
        self._exact = exact
        self._evicting = evicting
        self._restarted = restarted

    def check_all(self, sessions: Iterable[KnownSession]) -> None:
        """Check every session, and that no other session is listed.

        Raises:
            Violation: a session is missing, listed though deleted, or has wrong content.
        """
        known = list(sessions)
        for each in known:
            self.check_session(each)
        found = {info.session for info in self._client.sessions()}
        existing = {each.name for each in known if each.state is not None}
        evicted = {each.name for each in known if self._evicting and each.durability != "ack"}
        if found - existing or existing - found - evicted:
            deleted, missing = sorted(found - existing), sorted(existing - found)
            raise Violation(f"listed though deleted: {deleted}, not listed: {missing}")

    def check_session(self, known: KnownSession) -> None:
        """Check one session, and set its known state to what was found.

        Raises:
            Violation: the session is missing or has wrong content.
        """
        self._tally.add("checked")
        session = handle(self._client, known)
        try:
            spans = session.info().layers
        except SessionNotFound:
            self._absent(known)
            return
        by_layer = {span.layer: span for span in spans}
        lengths = [by_layer[layer].length if layer in by_layer else 0 for layer in range(known.layers)]
        starts = [by_layer[layer].start if layer in by_layer else 0 for layer in range(known.layers)]
        state = self._same(known, lengths, _read(session, starts, lengths))
        for layer, start in enumerate(starts):
            least = max(0, lengths[layer] - state.window) if state.window else 0
            most = state.first(layer)
            if not (least <= start <= most or (known.durability != "ack" and start <= least)):
                raise Violation(f"{known.name}: layer {layer} starts at {start}, expected {least} to {most}")
        pending, known.pending, known.last = known.pending, None, None
        known.found(State(state.cut_each(lengths), tuple(starts), state.window))
        if pending and state is pending.state:
            self._tally.add("carried out")
        if pending and pending.append and tuple(lengths) == state.lengths:
            self._send_again(session, known, pending)

    def _send_again(self, session: Session, known: KnownSession, pending: PendingCall) -> None:
        """Repeat the append whose response never came. It is stored now if it was not stored before."""
        assert pending.append is not None
        try:
            answer = send(session, known, pending.append)
        except InsufficientStorage:
            if not self._evicting:
                raise
            self._tally.add("rejected")
            return
        self._tally.add("bytes", appended(known, pending.append, answer))
        self._tally.add("repeated")
        known.state = pending.state
        known.history.append((time.monotonic(), known.state))

    def _absent(self, known: KnownSession) -> None:
        kept = known.durability == "ack" or (known.durability == "spill" and self._exact and not self._evicting)
        if kept and None not in known.possible:
            raise Violation(f"{known.name} ({known.durability}) is missing")
        if known.durability == "spill" and known.saved is not None and None not in known.possible:
            raise Violation(f"{known.name} is missing, though a checkpoint has saved {known.saved} tokens")
        if known.pending and known.pending.state is None:
            self._tally.add("carried out")
        elif known.state is not None:
            self._tally.add("lost")
        known.pending = known.last = None
        known.found(None)

    def _same(self, known: KnownSession, lengths: Sequence[int], parts: Sequence[Part]) -> State:
        """Return the possible state that the session is in.

        Raises:
            Violation: the session is in none of its possible states.
        """
        exact = self._exact or known.durability == "ack"
        if known.durability == "spill" and known.saved and any(map(int.__lt__, lengths, known.saved)):
            raise Violation(f"{known.name}: its layers have {lengths} tokens, a checkpoint has saved {known.saved}")
        reasons = []
        for state in known.possible:
            if state is None:
                reasons.append("it was deleted")
            elif known.durability == "memory" and self._restarted:
                reasons.append("it was in memory only, and the service was restarted")
            elif tuple(lengths) != state.lengths and (exact or any(map(int.__gt__, lengths, state.lengths))):
                reasons.append(f"its layers have {lengths} tokens, expected {state.lengths}")
            elif wrong := self._difference(known, state, parts):
                reasons.append(wrong)
            else:
                if tuple(lengths) != state.lengths:
                    self._tally.add("lost")
                return state
        raise Violation(f"{known.name} ({known.durability}): {'; or '.join(reasons)}")

    def _difference(self, known: KnownSession, state: State, parts: Sequence[Part]) -> str:
        for part in parts:
            for i, layer in enumerate(range(part.layers.start, part.layers.stop)):
                numbers = state.layers[layer][part.content.start : part.content.stop]
                streams = (Encoded(s.packed[i : i + 1], s.norms[i : i + 1]) for s in (part.content.k, part.content.v))
                nbytes, wrong = known.pool.difference(slice(layer, layer + 1), numbers, *streams)
                self._tally.add("bytes", nbytes)
                if wrong:
                    return f"layer {layer}, read from position {part.content.start}: {wrong}"
        return ""


def _read(session: Session, starts: Sequence[int], lengths: Sequence[int]) -> list[Part]:
    """Read a whole session. Consecutive layers of one length are read in one request."""
    parts = []
    for (start, stop), group in groupby(range(len(starts)), lambda layer: (starts[layer], lengths[layer])):
        layers = list(group)
        if start < stop:
            content = session.read(start, stop, layers=(layers[0], layers[-1] + 1))
            parts.append(Part(slice(layers[0], layers[-1] + 1), content))
    return parts
