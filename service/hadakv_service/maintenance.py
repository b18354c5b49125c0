"""Lifecycle of the stores: open the disk store, run periodic maintenance and checkpoints, close on shutdown."""

import asyncio
import logging
import shutil
import time
from pathlib import Path
from typing import Protocol

from pydantic import ByteSize

from hadakv_service.device.executor import DeviceExecutor
from hadakv_service.errors import Busy
from hadakv_service.settings import Settings, human_size
from hadakv_service.storage.disk.interface import DiskStore, DiskStoreError
from hadakv_service.storage.disk.null_store import NullStore
from hadakv_service.storage.disk.retired_store import RetiredStore
from hadakv_service.storage.disk.sqlite_file import FILE, make_directory
from hadakv_service.storage.disk.sqlite_store import SqliteStore
from hadakv_service.storage.session_store import SessionStore

log = logging.getLogger(__name__)

MAINTENANCE_SECONDS = 30.0
# How often to look for sessions to checkpoint: at most, and as a part of the checkpoint interval.
CHECKPOINT_POLL_SECONDS, CHECKPOINT_POLL_SHARE = 1.0, 0.05


def open_disk_store(settings: Settings) -> DiskStore:
    """Open the disk store that the settings name, or a null store.

    Raises:
        DataDirectoryError: the data directory has another version, another owner, or is in use.
        OSError: the data directory cannot be created or read.
    """
    if settings.disk_budget == 0:
        return _open_retired_store(settings.data_dir)
    budget = settings.disk_budget
    if budget is None:
        make_directory(settings.data_dir)
        # The store's own files are not free space, but the store may use that space. Count them as available.
        own_nbytes = sum(path.stat().st_size for path in settings.data_dir.glob(f"{FILE}*") if path.is_file())
        budget = ByteSize((shutil.disk_usage(settings.data_dir).free + own_nbytes) // 2)
    store = SqliteStore(settings.data_dir, int(budget))
    if store.used > store.budget:
        log.warning(
            "data directory has %s of sessions, but --disk-budget is %s: least recently used sessions are deleted as "
            "soon as one is stored",
            *(human_size(nbytes) for nbytes in (store.used, store.budget)),
        )
    return store


def _open_retired_store(directory: Path) -> DiskStore:
    """Open what earlier runs have left on disk, for a service that uses no disk."""
    if not (directory / FILE).is_file():
        return NullStore()
    try:
        store = SqliteStore(directory, 0)
    except (DiskStoreError, OSError) as error:
        log.warning("sessions on disk are not served, and may reappear when a disk is used again: %s", error)
        return NullStore()
    if not store.sessions:
        store.close()
        return NullStore()
    log.warning(
        "%d sessions in %s are not served, because --disk-budget is 0; those whose ids are used are deleted",
        store.sessions,
        directory,
    )
    return RetiredStore(store)


async def run_periodically(device: DeviceExecutor, store: SessionStore) -> None:
    """Run the maintenance of the store every MAINTENANCE_SECONDS, until cancelled."""
    while True:
        await asyncio.sleep(MAINTENANCE_SECONDS)
        try:
            await device.call(store.run_maintenance)
        except Busy:
            continue
        except Exception:
            log.exception("periodic maintenance failed")


async def run_checkpoints(device: DeviceExecutor, store: SessionStore) -> None:
    """Write changed sessions to disk in the background, until cancelled.

    Only the choice of the pages runs on the device thread, a few at a time. Between two writes the disk is left to
    others for as long as the first one took, unless a change is older than the checkpoint interval.
    """
    checkpoints = store.checkpoints
    poll_seconds = min(CHECKPOINT_POLL_SECONDS, checkpoints.seconds * CHECKPOINT_POLL_SHARE)
    while checkpoints.seconds:
        pause = poll_seconds
        try:
            # Even if the queue is full: otherwise a busy service would write nothing.
            if checkpoints.has_work and (write := await device.call_unbounded(checkpoints.begin)):
                began = time.monotonic()
                written = asyncio.wrap_future(write)
                await asyncio.wait([written])
                # `settle` reports the error. Here it only counts as seen.
                written.exception()
                await device.call_unbounded(checkpoints.settle)
                pause = 0.0 if checkpoints.is_overdue else time.monotonic() - began
        except Exception:
            log.exception("checkpoint failed")
        await asyncio.sleep(pause)


class CloseProgress(Protocol):
    """Receiver of what happens when the store is closed."""

    def on_writing(self, sessions: int, nbytes: int) -> None:
        """Note what is about to be written: sessions and their bytes in memory."""
        ...

    def on_written(self, unwritten: int) -> None:
        """Note the end of the writing, and the number of sessions that were not written."""
        ...


def close_store(store: SessionStore, deadline: float, progress: CloseProgress | None = None) -> None:
    """Write changed sessions to disk and close the store. Log the number of those that were not written.

    Args:
        store: store to close.
        deadline: time to stop writing at, in seconds of `time.monotonic`.
        progress: is told what is written.
    """
    evictions_before = store.evictions
    changed = store.unwritten()
    if progress:
        progress.on_writing(*changed)
    unwritten = store.close(deadline)
    if progress and changed.sessions:
        progress.on_written(unwritten)
    if evicted := store.evictions - evictions_before:
        log.warning("evicted %d sessions at shutdown: disk budget exceeded", evicted)
    if unwritten:
        log.warning("%d sessions not saved at shutdown: no disk space, no time, or a disk failure", unwritten)
