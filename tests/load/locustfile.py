"""Load for locust: users that decode and users that prefill, through this project's own client.

Each user has a client of its own, and sends its next request when the last one has succeeded. A response time includes
the client's own work, and the time in which this process works for other users.

The users are greenlets. `python -m locust` patches the standard library with gevent before this file and httpx are
imported, so a waiting client does not block the others.
"""

import argparse
import logging
import ssl
from collections import deque
from collections.abc import Callable
from functools import cache
from time import perf_counter
from typing import Any, TypeVar
from uuid import uuid4

import gevent
import httpx
import numpy as np
from locust import User, events, task
from locust.env import Environment
from locust.runners import WorkerRunner
from numpy.typing import NDArray

from hadakv_client import Client, StoredAppend

SEED = 20260
DECODE_STEPS = 64  # number of different tokens; a session appends them in turn
SESSION_TOKENS = 1024  # sessions are deleted at this length, to bound the memory of a long run
FAILURE_SECONDS = 1  # pause after a failure, so that a stopped service does not fill the report
TLS = ssl.create_default_context()  # shared, because creating one for each client would delay the first requests

Shape = tuple[int, int, int, int]
T = TypeVar("T")


@events.init_command_line_parser.add_listener
def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the sizes and weights to locust's options."""
    group = parser.add_argument_group("KV load")
    group.add_argument("--layers", type=_positive, default=6, help="layers of every append")
    group.add_argument("--kv-heads", type=_positive, default=2, help="heads of k and v")
    group.add_argument("--head-dim", type=_positive, default=256, help="elements of one vector")
    group.add_argument("--prefill-tokens", type=_positive, default=2048, help="tokens of one prefill")
    group.add_argument("--sessions", type=_positive, default=8, help="sessions each decoding user appends to in turn")
    group.add_argument("--decode-weight", type=_weight, default=10, help="share of the users that decode")
    group.add_argument("--prefill-weight", type=_weight, default=1, help="share of the users that prefill")


@events.init.add_listener
def prepare(environment: Environment, **_: Any) -> None:
    """Set the weights before any user is spawned, and make the arrays before anything is timed."""
    logging.getLogger("httpx").setLevel(logging.WARNING)  # it logs every request
    options = environment.parsed_options
    DecodeUser.weight = options.decode_weight
    PrefillUser.weight = options.prefill_weight
    if options.decode_weight:
        arrays(DECODE_STEPS, shape(options, 1))
    if options.prefill_weight:
        arrays(1, shape(options, options.prefill_tokens))
    # gevent's clock stood still meanwhile. The duration of the run is counted from it.
    gevent.get_hub().loop.update_now()


@events.quitting.add_listener
def fail_without_requests(environment: Environment, **_: Any) -> None:
    """Fail a run without any request."""
    if not isinstance(environment.runner, WorkerRunner) and environment.stats.total.num_requests == 0:
        environment.process_exit_code = 1


def shape(options: argparse.Namespace, tokens: int) -> Shape:
    """Return the shape of k and of v for a number of tokens."""
    return options.layers, options.kv_heads, tokens, options.head_dim


@cache
def arrays(count: int, of: Shape) -> NDArray[np.float16]:
    """Return pairs of k and v, float16 `[count, 2, layers, kv_heads, tokens, head_dim]`, the same in every run."""
    values = np.random.default_rng(SEED).standard_normal((count, 2, *of), np.float32).astype(np.float16)
    values.flags.writeable = False
    return values


class WrongResponse(Exception):
    """A successful response with wrong content."""


class KVUser(User):
    """User with a client. Each request is reported to locust.

    Attributes:
        client: client without retries, so that every rejection is counted.
        prefix: prefix of the ids of this user's sessions.
    """

    abstract = True

    def on_start(self) -> None:
        self.options = self.environment.parsed_options
        self.client = Client(self.environment.host or self.host, retries=0, transport=httpx.HTTPTransport(verify=TLS))
        self.prefix = f"load-{uuid4().hex}-"
        self.made = 0

    def on_stop(self) -> None:
        """Delete the user's sessions."""
        self.call("clean up", self._delete_all)
        self.client.close()

    def _delete_all(self) -> None:
        for info in list(self.client.sessions(self.prefix)):
            self.client.session(info.session).delete()

    def new_id(self) -> str:
        """Return a new session id."""
        self.made += 1
        return f"{self.prefix}{self.made}"

    def append(self, name: str, session: str, position: int, kv: NDArray[np.float16]) -> bool:
        """Append at a position; return whether the response was right."""
        k, v = kv

        def checked() -> StoredAppend:
            appended = self.client.session(session).append(k, v, position=position)
            check(appended, position, k.shape)
            return appended

        return self.call(name, checked, nbytes)

    def call(self, name: str, function: Callable[[], T], length: Callable[[T], int] = lambda _: 0) -> bool:
        """Time one request and report it to locust, also if it fails.

        Args:
            name: name of its row in the table.
            function: sends the request, and raises an exception if it fails.
            length: returns the number of bytes of the function's result.

        Returns:
            Whether the request succeeded.
        """
        response_length, failure = 0, None
        began = perf_counter()
        try:
            result = function()
        except Exception as error:
            failure = error
        milliseconds = (perf_counter() - began) * 1000
        if failure is None:
            response_length = length(result)
        self.environment.events.request.fire(
            request_type="KV",
            name=name,
            response_time=milliseconds,
            response_length=response_length,
            exception=failure,
            context={},
        )
        if failure is not None:
            gevent.sleep(FAILURE_SECONDS)
        return failure is None


class DecodeUser(KVUser):
    """User that decodes a batch: appends one token per step, to each of its sessions in turn."""

    def on_start(self) -> None:
        super().on_start()
        self.steps = arrays(DECODE_STEPS, shape(self.options, 1))
        # Id and length of each session. The first one is next.
        self.batch = deque((self.new_id(), 0) for _ in range(self.options.sessions))

    @task
    def step(self) -> None:
        session, length = self.batch.popleft()
        stored = self.append("decode: append", session, length, self.steps[length % DECODE_STEPS])
        if stored and length + 1 < SESSION_TOKENS:
            self.batch.append((session, length + 1))
            return
        if stored:
            self.call("decode: delete", self.client.session(session).delete)
        # After a failure the session's length is unknown. It is deleted at the end of the run.
        self.batch.append((self.new_id(), 0))


class PrefillUser(KVUser):
    """User that prefills: appends many tokens at once to a new session, and deletes it."""

    def on_start(self) -> None:
        super().on_start()
        (self.prompt,) = arrays(1, shape(self.options, self.options.prefill_tokens))

    @task
    def prefill(self) -> None:
        session = self.new_id()
        if self.append("prefill: append", session, 0, self.prompt):
            self.call("prefill: delete", self.client.session(session).delete)


def check(appended: StoredAppend, position: int, sent: tuple[int, ...]) -> None:
    """Compare a response with the append.

    Raises:
        WrongResponse: the position, length, creation flag or shape is wrong.
    """
    tokens = sent[-2]
    # The messages contain no numbers, because locust counts equal messages.
    if (appended.position, appended.tokens) != (position, tokens):
        raise WrongResponse("position or number of tokens differs from the append")
    if appended.length != position + tokens:
        raise WrongResponse("length is not position + tokens")
    if appended.created != (position == 0):
        raise WrongResponse("an append created a session that should exist, or found one that should not")
    if not appended.k.packed.shape[:-1] == appended.v.packed.shape[:-1] == sent[:-1]:
        raise WrongResponse("the stored shape differs from the shape sent")


def nbytes(appended: StoredAppend) -> int:
    """Return the number of bytes that a response reports as stored."""
    return sum(array.nbytes for stream in (appended.k, appended.v) for array in (stream.packed, stream.norms))


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return value


def _weight(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError("must be 0 or more")
    return value
