"""Service on a data directory that tests restart, and tokens to store in it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from hadakv_kernels import Codec
from hadakv_service.testing import running_service
from support.contract import Caller, stream
from support.inputs.arrays import pair

CODEC = Codec()
K, V = pair(2, 2, 300)


@contextmanager
def service(directory: Path, *flags: str, kill: bool = False) -> Iterator[Caller]:
    """Start a service on a directory. At the end of the block it is terminated, or killed."""
    with running_service("--data-dir", str(directory), "--disk-budget", "1GiB", *flags) as running:
        with Caller(running.url) as caller:
            yield caller
        if kill:
            running.process.kill()


def holds(caller: Caller, session: str, tokens: int = 300) -> bool:
    """Return whether a session has exactly the first tokens of K and V."""
    body = caller.read(session)
    wanted = [stream(np.ascontiguousarray(x[:, :, :tokens]), CODEC) for x in (K, V)]
    return body["length"] == tokens and [body["k"], body["v"]] == wanted
