"""What a service has to do for its store from beginning to end: open the tier, look after both, close them."""

import asyncio
import logging
import shutil

from pydantic import ByteSize

from hadakv_service.device.executor import DeviceExecutor
from hadakv_service.errors import Busy
from hadakv_service.settings import Settings
from hadakv_service.storage.disk.interface import DiskStore
from hadakv_service.storage.disk.null_store import NullStore
from hadakv_service.storage.disk.sqlite_file import FILE, make_directory
from hadakv_service.storage.disk.sqlite_store import SqliteStore
from hadakv_service.storage.session_store import SessionStore

log = logging.getLogger(__name__)

MAINTENANCE_SECONDS = 30.0


def open_disk_store(settings: Settings) -> DiskStore:
    """What lies below memory.

    Raises:
        TierRefused, OSError: as for `create_app`.
    """
    if settings.disk_budget == 0:
        return NullStore()
    budget = settings.disk_budget
    if budget is None:
        make_directory(settings.data_dir)
        # What is there already is its own.
        own = sum(path.stat().st_size for path in settings.data_dir.glob(f"{FILE}*") if path.is_file())
        budget = ByteSize((shutil.disk_usage(settings.data_dir).free + own) // 2)
    return SqliteStore(settings.data_dir, int(budget))


async def run_periodically(device: DeviceExecutor, store: SessionStore) -> None:
    """Let the store forget who has expired, and so on, now and then."""
    while True:
        await asyncio.sleep(MAINTENANCE_SECONDS)
        try:
            await device.call(store.run_maintenance)
        except Busy:
            continue
        except Exception:
            log.exception("what has to be done now and then was not")


def close_store(store: SessionStore, until: float) -> None:
    """Write what may outlive the process until a moment of `time.monotonic`, and say so if that is not all."""
    ended = store.evictions
    left = store.close(until)
    if ended := store.evictions - ended:
        log.warning("%d sessions ended, as there was no room for them on disk beside those used later", ended)
    if left:
        log.warning("%d sessions were not written to disk, for want of room, of time, or of a disk that works", left)
