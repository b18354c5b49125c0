"""Session value <-> manifest."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hadakv_kernels import Codec
from hadakv_service.sessions.layer_run import PAGE_TOKENS, LayerRun
from hadakv_service.sessions.page import Page
from hadakv_service.sessions.session import Session
from hadakv_service.storage.disk.interface import Manifest, RunManifest

_OPTIONS = ("layers", "kv_heads", "head_dim", "window", "ttl_seconds", "durability", "revision")


def manifest_from_session(session: Session, created: float, last_used: float, page_ids: Mapping[Page, int]) -> Manifest:
    """Return the manifest of a session.

    Args:
        session: the session.
        created: creation time, Unix seconds.
        last_used: time of last use, Unix seconds.
        page_ids: ids of the pages that the same transaction writes. The other pages are on disk already.
    """
    options: dict[str, Any] = {name: getattr(session, name) for name in _OPTIONS}
    options["codecs"] = None if session.codecs is None else [codec.to_mapping() for codec in session.codecs]

    def page_id(page: Page) -> int:
        return page.page_id if page.page_id is not None else page_ids[page]

    runs = tuple(
        RunManifest(
            layers=run.layers,
            start=run.start,
            stop=run.stop,
            full_pages=run.full_pages,
            first_page=run.start // PAGE_TOKENS,
            pages=tuple(map(page_id, run.pages)),
            is_gap=run.is_gap,
        )
        for run in session.runs
    )
    expires = None if session.ttl_seconds is None else last_used + session.ttl_seconds
    return Manifest(options, runs, session.nbytes, created, last_used, expires, protected=session.durability == "ack")


def session_from_manifest(manifest: Manifest, page: Callable[[int], Page] | None = None) -> Session:
    """Return the session of a manifest, with the page that `page` returns for each id, or without pages."""
    options = dict(manifest.options)
    codecs = options.pop("codecs")
    both = None if codecs is None else (Codec.from_mapping(codecs[0]), Codec.from_mapping(codecs[1]))
    runs = tuple(
        LayerRun(
            run.layers, run.start, run.stop, tuple(map(page, run.pages)) if page else (), run.full_pages, run.is_gap
        )
        for run in manifest.runs
    )
    # Files of older versions have only those declared layers that were appended to.
    return Session(codecs=both, runs=runs, **options).with_declared_layers()


def is_prefix(stored_value: Manifest | Session, session: Session) -> bool:
    """Whether an earlier value of a session, for example on disk, still is a prefix of it: no layer is longer."""
    before: Sequence[RunManifest | LayerRun] = stored_value.runs
    after: Sequence[RunManifest | LayerRun] = session.runs
    if len(before) == len(after) == 1 and before[0].layers == after[0].layers:
        # The usual case, which each append checks.
        return before[0].stop <= after[0].stop
    if [run.layers for run in before] != [run.layers for run in after]:
        # Compare layer by layer. Otherwise the few runs are enough.
        before, after = _by_layer(before), _by_layer(after)
    stored, lengths = [run.stop for run in before], [run.stop for run in after]
    return len(stored) <= len(lengths) and all(a <= b for a, b in zip(stored, lengths, strict=False))


def _by_layer(runs: Sequence[RunManifest | LayerRun]) -> list[RunManifest | LayerRun]:
    """Return for each layer the run that it belongs to."""
    return [run for run in runs for _ in range(run.layers)]
