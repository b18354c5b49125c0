"""Session: an immutable value."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate, chain, pairwise
from secrets import randbits
from typing import Literal

from hadakv_kernels import Backend, Codec, CodecSpec
from hadakv_service.errors import InvalidRequest, PositionConflict, ShapeMismatch
from hadakv_service.sessions.conflicts import codec_mismatch, position_conflict
from hadakv_service.sessions.layer_run import LayerRun, empty, join
from hadakv_service.sessions.page import Page

MAX_LAYERS = 1024
# memory: lost when the process exits. spill: saved by checkpoints, when evicted and at a clean shutdown.
# ack: saved before every response.
Durability = Literal["memory", "spill", "ack"]
FLOAT16_NBYTES = 2


@dataclass(frozen=True, slots=True)
class Shape:
    """Axes of the tensors of one append, and where they are stored.

    Attributes:
        layer: index of the first layer.
        layers: number of layers.
        kv_heads: number of KV heads.
        tokens: number of tokens.
        head_dim: elements of a vector.
        position: position of the first token; None for the end of the session.
    """

    layer: int
    layers: int
    kv_heads: int
    tokens: int
    head_dim: int
    position: int | None = None


@dataclass(frozen=True)
class Session:
    """Shape, codecs and pages of a session, without its id and times. None means not decided yet.

    Values that one batch needs often are cached properties, because a session never changes.

    Attributes:
        codecs: codecs of K and V.
        layers: declared number of layers, the limit for appends.
        kv_heads: number of KV heads.
        head_dim: elements of a vector.
        window: number of tokens each layer keeps; None keeps all.
        ttl_seconds: seconds without use until the session expires; None for never.
        durability: what is saved to disk, and when; see `Durability`.
        runs: runs of layers, in order.
        revision: random number that changes when stored tokens are deleted or replaced, but not with an append.
    """

    codecs: tuple[Codec, Codec] | None = None
    layers: int | None = None
    kv_heads: int | None = None
    head_dim: int | None = None
    window: int | None = None
    ttl_seconds: float | None = None
    durability: Durability = "memory"
    runs: tuple[LayerRun, ...] = ()
    revision: int = field(default=0, compare=False)

    def with_new_revision(self) -> "Session":
        """Return the session with another revision."""
        return replace(self, revision=randbits(64))

    @cached_property
    def specs(self) -> tuple[CodecSpec, CodecSpec]:
        """Codecs of K and V at the session's head_dim. Both must be decided."""
        assert self.codecs is not None
        assert self.head_dim is not None
        k, v = self.codecs
        return k.at(self.head_dim), v.at(self.head_dim)

    @property
    def has_shape(self) -> bool:
        """Whether codecs and axes are decided. Tokens can be stored and read only then."""
        return None not in (self.codecs, self.kv_heads, self.head_dim)

    @property
    def stored_layers(self) -> int:
        """Number of layers up to the last one that was declared or appended to, gaps included."""
        return sum(run.layers for run in self.runs)

    @property
    def rows(self) -> int:
        """Number of stored vectors of K; V has as many."""
        return (self.kv_heads or 0) * sum(run.layers * (run.stop - run.start) for run in self.runs)

    @cached_property
    def nbytes(self) -> int:
        """Stored bytes of K and V."""
        return self.rows * sum(spec.nbytes for spec in self.specs) if self.rows else 0

    @cached_property
    def pages(self) -> int:
        """Number of stored pages."""
        return sum(len(run.pages) for run in self.runs)

    def all_pages(self) -> Iterator[Page]:
        """Yield every page of every run."""
        return chain.from_iterable(run.pages for run in self.runs)

    @property
    def raw_nbytes(self) -> int:
        """Bytes of the same tokens as float16."""
        return self.rows * 2 * FLOAT16_NBYTES * (self.head_dim or 0)

    def first(self, run: LayerRun) -> int:
        """Return the position of the first token of a run that can be read."""
        return run.start if self.window is None else max(run.start, run.stop - self.window)

    def spans(self) -> Iterator[tuple[int, int, int]]:
        """Yield index, first position and length of each layer that exists."""
        layer = 0
        for run in self.runs:
            for _ in range(0 if run.is_gap else run.layers):
                yield layer, self.first(run), run.stop
                layer += 1
            layer += run.layers if run.is_gap else 0

    def with_declared_layers(self) -> "Session":
        """Return the session in which all declared layers exist, with or without tokens."""
        if self.layers is None:
            return self
        runs = [replace(run, is_gap=False) if run.is_gap else run for run in self.runs]
        if missing := self.layers - self.stored_layers:
            runs.append(LayerRun(missing))
        return replace(self, runs=tuple(runs))

    def with_shape(self, shape: Shape, codecs: tuple[Codec, Codec] | None) -> "Session":
        """Return the session with the shape and codecs of an append, without its tokens.

        Raises:
            ShapeMismatch: the axes of the append differ from those of the session.
            CodecMismatch: the requested codecs differ from those of the session.
        """
        for axis in ("kv_heads", "head_dim"):
            mine, given = getattr(self, axis), getattr(shape, axis)
            if mine is not None and mine != given:
                raise ShapeMismatch(f"The session has {axis} {mine}, the tensors have {given}.", **{axis: mine})
        last = shape.layer + shape.layers
        if last > (self.layers or MAX_LAYERS):
            limit = self.layers or MAX_LAYERS
            raise ShapeMismatch(f"The session has {limit} layers, the tensors reach layer {last - 1}.", layers=limit)
        if codecs and self.codecs and codecs != self.codecs:
            raise codec_mismatch(self.codecs, codecs)
        if self.has_shape:
            return self
        chosen = self.codecs or codecs or (Codec(), Codec())
        return replace(self, kv_heads=shape.kv_heads, head_dim=shape.head_dim, codecs=chosen)

    def common_range(self, layer: int, layers: int) -> tuple[int, int, int]:
        """Return the first position that all of these layers can read, the shortest length and the longest."""
        first, lengths, at = 0, [], 0
        for run in self.runs:
            if at < layer + layers and layer < at + run.layers:
                first = max(first, self.first(run))
                lengths.append(run.stop)
            at += run.layers
        if at < layer + layers:
            lengths.append(0)
        return first, min(lengths), max(lengths)

    def append_position(self, shape: Shape) -> tuple[int, bool]:
        """Return the position of an append, and whether that is the end. If not, the append repeats stored tokens.

        Raises:
            PositionConflict: the append starts elsewhere than at the end, and reaches beyond the end or has left the
                window.
        """
        first, length, longest = self.common_range(shape.layer, shape.layers)
        if shape.position in (None, length) and length == longest:
            return length, True
        if shape.position is not None:
            stop = shape.position + shape.tokens
            if stop <= length and (shape.position >= first or stop > first):
                return shape.position, False
        if length != longest:
            raise PositionConflict(f"The layers have different lengths, from {length} to {longest}.", length)
        raise self.conflict(shape)

    def conflict(self, shape: Shape) -> PositionConflict:
        """Return the error for an append that is neither at the end nor a repetition."""
        first, length, _ = self.common_range(shape.layer, shape.layers)
        return position_conflict(length if shape.position is None else shape.position, shape.tokens, first, length)

    def split_runs(self, layer: int, layers: int) -> "Session":
        """Return the session with runs that begin and end where these layers do, and without further tokens.

        A run that also has other layers is split into groups of the same size, because the other layers are likely
        to be appended separately too.
        """
        if self._has_run(layer, layers):
            return self
        stop = layer + layers
        runs = self.runs
        if self.stored_layers < stop:
            runs = (*runs, *self._empty_runs(layer, stop))
        parts, at = list[LayerRun](), 0
        for run in runs:
            parts += run.split(borders) if len(borders := _borders(layer - at, layers, run.layers)) > 2 else [run]
            at += run.layers
        return self if len(parts) == len(self.runs) else replace(self, runs=tuple(parts))

    def split_runs_nbytes(self, layer: int, layers: int) -> int:
        """Return the stored bytes of the runs that `split_runs` would split."""
        if self._has_run(layer, layers):
            return 0
        nbytes, at = 0, 0
        for run in self.runs:
            if len(_borders(layer - at, layers, run.layers)) > 2:
                nbytes += sum(page.nbytes for page in run.pages)
            at += run.layers
        return nbytes

    def appends_one_page(self, shape: Shape) -> bool:
        """Whether an append only adds a page: it is at the end, splits no run, and is not merged with other pages."""
        at = 0
        for run in self.runs:
            if at >= shape.layer:
                fits = at == shape.layer and run.layers == shape.layers and shape.position in (None, run.stop)
                return fits and not run.is_gap and run.adds_page(shape.tokens)
            at += run.layers
        return False

    def _has_run(self, layer: int, layers: int) -> bool:
        """Whether a run has exactly these layers, as it does after the first append to them."""
        at = 0
        for run in self.runs:
            if at >= layer:
                return at == layer and run.layers == layers
            at += run.layers
        return False

    def new_pages(self, layer: int, layers: int, tokens: int) -> int:
        """Return how many pages an append to these layers adds at most. Call `split_runs` first."""
        spans = pairwise([0, *accumulate(run.layers for run in self.runs)])
        grown = [run for run, (a, b) in zip(self.runs, spans, strict=True) if layer <= a and b <= layer + layers]
        return sum(run.pages_after(tokens) - len(run.pages) for run in grown)

    def append(self, layer: int, page: Page, backend: Backend) -> "Session":
        """Return the session with the tokens of a page at the end of its layers, which must have equal lengths."""
        stop = layer + page.layers
        grown, at = [], 0
        for run in self.split_runs(layer, page.layers).runs:
            part = slice(at - layer, at - layer + run.layers)
            at += run.layers
            if layer < at <= stop:
                # A view would keep the memory of all layers. Copy it.
                own = page if run.layers == page.layers else join([page.slice(part, slice(None))], 0, backend)
                run = run.append(own, backend)  # noqa: PLW2901 - the run grows into its successor
                if self.window is not None:
                    run = run.drop_before(run.stop - self.window)  # noqa: PLW2901 - as above
            grown.append(run)
        return replace(self, runs=tuple(grown))

    def truncate(self, length: int, backend: Backend) -> "Session":
        """Return the session without the tokens from position `length` on. Shorter layers stay as they are.

        Raises:
            InvalidRequest: no layer is that long, or the tokens before `length` have left the window.
        """
        longest = max((run.stop for run in self.runs), default=0)
        if length > longest:
            raise InvalidRequest([("length", f"must be at most {longest}, not {length}")])
        first = max((self.first(run) for run in self.runs if run.stop > length), default=0)
        if length < first:
            raise InvalidRequest([("length", f"tokens before {first} have left the window")])
        return replace(self, runs=tuple(run.truncate(length, backend) for run in self.runs))

    def _empty_runs(self, layer: int, stop: int) -> list[LayerRun]:
        """Return new layers up to `stop`. Those before `layer` are a gap."""
        stored = self.stored_layers
        gap = [LayerRun(layer - stored, is_gap=True)] if layer > stored else []
        return [*gap, LayerRun(stop - max(layer, stored))]

    def layer_range(self, layers: tuple[int, int] | None) -> tuple[int, int]:
        """Return first layer, and layer after the last; None stands for all.

        Raises:
            InvalidRequest: the range is not within the stored layers.
        """
        a, b = layers or (0, self.stored_layers)
        if not 0 <= a <= b <= self.stored_layers:
            raise InvalidRequest([("layers", f"must lie within 0:{self.stored_layers}, not {a}:{b}")])
        return a, b

    def range(self, start: int | None, stop: int | None, layers: tuple[int, int] | None) -> tuple[int, int, int, int]:
        """Check a range to read. Return first layer, layer after the last, start and stop.

        A missing bound is that of the session. A stop beyond the shortest layer becomes the length of that layer.

        Raises:
            InvalidRequest: the session does not have these layers or positions.
        """
        a, b = self.layer_range(layers)
        first, length, _ = self.common_range(a, b - a) if a < b else (0, 0, 0)
        # Layers whose windows share no token have an empty common range, at the end of the shortest layer.
        first = min(first, length)
        start = first if start is None else start
        stop = length if stop is None else min(stop, length)
        if start < first:
            raise InvalidRequest([("start", f"tokens before {first} have left the window")])
        if start > stop:
            raise InvalidRequest([("start", f"must be at most {stop}, not {start}")])
        return a, b, start, stop

    def read(self, a: int, b: int, start: int, stop: int, backend: Backend) -> Page:
        """Return positions `start` to `stop` of layers `a` to `b` as one page. The session must have a shape."""
        if a == b or start == stop:
            return empty(b - a, self.kv_heads or 0, self.specs)
        across = [_one(list(run.read(part, start, stop)), 2, backend) for _, run, part in self.parts(a, b)]
        return _one(across, 0, backend)

    def parts(self, a: int, b: int) -> Iterator[tuple[int, LayerRun, slice]]:
        """Yield each run that has some of the layers: the first such layer, the run, and their range within the run."""
        at = 0
        for run in self.runs:
            part = slice(max(a - at, 0), min(b - at, run.layers))
            if part.start < part.stop:
                yield at + part.start, run, part
            at += run.layers


def _one(pages: list[Page], axis: int, backend: Backend) -> Page:
    return pages[0].resident_copy() if len(pages) == 1 else join(pages, axis, backend)


def _borders(layer: int, layers: int, all_layers: int) -> list[int]:
    """Return where to split a run to separate some layers, counted from its first layer. Both ends are included."""
    inside = 0 < layer < all_layers or 0 < layer + layers < all_layers
    return [0, *range(layer % layers or layers, all_layers, layers), all_layers] if inside else [0, all_layers]
