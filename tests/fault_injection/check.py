"""After a restart: every session is read back and compared with what it must hold."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from fault_injection.model import Append, Known, State, Unanswered
from fault_injection.report import Tally, Violation
from hadakv_client import Client, InsufficientStorage, Range, Session, SessionNotFound, StoredAppend
from hadakv_kernels import Encoded


def appended(known: Known, append: Append, answer: StoredAppend) -> int:
    """Whether an append's answer is the right one; bytes compared.

    Raises:
        Violation: it is not.
    """
    wanted = (append.position, len(append.numbers), append.position + len(append.numbers))
    if (answer.position, answer.tokens, answer.length) != wanted:
        told = (answer.position, answer.tokens, answer.length)
        raise Violation(f"{known.name}: an append was answered with position, tokens and length {told}, not {wanted}")
    nbytes, wrong = known.pool.difference(append.layers, append.numbers, answer.k, answer.v)
    if wrong:
        raise Violation(f"{known.name}: the answer to an append at {append.position}: {wrong}")
    return nbytes


def send(session: Session, known: Known, append: Append) -> StoredAppend:
    """Make an append."""
    k, v = known.pool.values(append.layers, append.numbers)
    answer = session.append(k, v, layer=append.layers.start, position=append.position)
    assert isinstance(answer, StoredAppend)
    return answer


def handle(client: Client, known: Known) -> Session:
    """A handle that knows nothing of the session but its codecs."""
    k, v = known.pool.shape.codecs
    return client.session(known.name, {"k": k, "v": v})


@dataclass(frozen=True)
class Part:
    """What was read of some consecutive layers."""

    layers: slice
    content: Range[Encoded]


class Check:
    """Compares what a service has with what it must have.

    Args:
        client: asks it.
        tally: counts.
        exact: everything that may outlive a process must be there, as after an orderly end; otherwise what is
            acknowledged must, and of the rest a beginning may.
        tight: there may be no room for what is sent again, and who is not acknowledged may have to go for it.
        restarted: it is another process than the one that answered, and what was in memory only must be gone.
    """

    def __init__(
        self, client: Client, tally: Tally, *, exact: bool, tight: bool = False, restarted: bool = True
    ) -> None:
        self._client = client
        self._tally = tally
        self._exact = exact
        self._tight = tight
        self._restarted = restarted

    def everything(self, sessions: Iterable[Known]) -> None:
        """Check each session, and that there are no others.

        Raises:
            Violation: something is not as it must be.
        """
        known = list(sessions)
        for each in known:
            self.settle(each)
        found = {info.session for info in self._client.sessions()}
        there = {each.name for each in known if each.state is not None}
        evicted = {each.name for each in known if self._tight and each.durability != "ack"}
        if found - there or there - found - evicted:
            raise Violation(f"listed though deleted: {sorted(found - there)}, not listed: {sorted(there - found)}")

    def settle(self, known: Known) -> None:
        """Check one session; from then on it is known to hold what was found.

        Raises:
            Violation: it is not as it must be.
        """
        self._tally.add("checked")
        session = handle(self._client, known)
        try:
            spans = session.info().layers
        except SessionNotFound:
            self._absent(known)
            return
        lengths = [span.length for span in spans] + [0] * (known.layers - len(spans))
        starts = [span.start for span in spans] + [0] * (known.layers - len(spans))
        state = self._same(known, lengths, _read(session, starts, lengths))
        for layer, start in enumerate(starts):
            least = max(0, lengths[layer] - state.window) if state.window else 0
            most = state.first(layer)
            if not (least <= start <= most or (known.durability != "ack" and start <= least)):
                raise Violation(f"{known.name}: layer {layer} begins at {start}, not within {least} and {most}")
        unanswered, known.unanswered, known.last = known.unanswered, None, None
        known.state = State(state.cut_each(lengths), tuple(starts), state.window)
        if unanswered and state is unanswered.state:
            self._tally.add("carried out")
        if unanswered and unanswered.append and tuple(lengths) == state.lengths:
            self._send_again(session, known, unanswered)

    def _send_again(self, session: Session, known: Known, unanswered: Unanswered) -> None:
        """What was not answered is sent once more, and stored then if it was not before."""
        assert unanswered.append is not None
        try:
            answer = send(session, known, unanswered.append)
        except InsufficientStorage:
            if not self._tight:
                raise
            self._tally.add("refused")
            return
        self._tally.add("bytes", appended(known, unanswered.append, answer))
        self._tally.add("repeated")
        known.state = unanswered.state

    def _absent(self, known: Known) -> None:
        kept = known.durability == "ack" or (known.durability == "spill" and self._exact and not self._tight)
        if kept and None not in known.possible:
            raise Violation(f"{known.name} ({known.durability}) is gone")
        if known.unanswered and known.unanswered.state is None:
            self._tally.add("carried out")
        elif known.state is not None:
            self._tally.add("lost")
        known.state = known.unanswered = known.last = None

    def _same(self, known: Known, lengths: Sequence[int], parts: Sequence[Part]) -> State:
        """Which of the states it may be in it is in.

        Raises:
            Violation: none of them.
        """
        exact = self._exact or known.durability == "ack"
        reasons = []
        for state in known.possible:
            if state is None:
                reasons.append("it was deleted")
            elif known.durability == "memory" and self._restarted:
                reasons.append("it was to be in memory only")
            elif tuple(lengths) != state.lengths and (exact or any(map(int.__gt__, lengths, state.lengths))):
                reasons.append(f"its layers have {lengths} tokens and not {state.lengths}")
            elif wrong := self._difference(known, state, parts):
                reasons.append(wrong)
            else:
                if tuple(lengths) != state.lengths:
                    self._tally.add("lost")
                return state
        raise Violation(f"{known.name} ({known.durability}): {'; or '.join(reasons)}")

    def _difference(self, known: Known, state: State, parts: Sequence[Part]) -> str:
        for part in parts:
            for i, layer in enumerate(range(part.layers.start, part.layers.stop)):
                numbers = state.layers[layer][part.content.start : part.content.stop]
                streams = (Encoded(s.packed[i : i + 1], s.norms[i : i + 1]) for s in (part.content.k, part.content.v))
                nbytes, wrong = known.pool.difference(slice(layer, layer + 1), numbers, *streams)
                self._tally.add("bytes", nbytes)
                if wrong:
                    return f"layers from {layer} on, read from {part.content.start} on: {wrong}"
        return ""


def _read(session: Session, starts: Sequence[int], lengths: Sequence[int]) -> list[Part]:
    """All that a session holds, in as few calls as its layers allow."""
    parts = []
    for (start, stop), group in groupby(range(len(starts)), lambda layer: (starts[layer], lengths[layer])):
        layers = list(group)
        if start < stop:
            content = session.read(start, stop, layers=(layers[0], layers[-1] + 1))
            parts.append(Part(slice(layers[0], layers[-1] + 1), content))
    return parts
