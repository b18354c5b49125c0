"""Load on a running service: sessions that grow a token at a time, and prompts that arrive whole."""

import time
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import numpy as np
from locust import User, constant, events, task

from hadakv_client import Client


@events.init_command_line_parser.add_listener
def _options(parser: Any) -> None:
    parser.add_argument("--layers", type=int, default=6, help="Layers of a session")
    parser.add_argument("--kv-heads", type=int, default=2, help="Heads of a layer")
    parser.add_argument("--head-dim", type=int, default=256, help="Elements of a vector")
    parser.add_argument("--prefill-tokens", type=int, default=2048, help="Tokens of a prompt")
    parser.add_argument("--sessions", type=int, default=8, help="Sessions each decoding user keeps growing")
    parser.add_argument("--decode-weight", type=int, default=10, help="Share of users that decode")
    parser.add_argument("--prefill-weight", type=int, default=1, help="Share of users that send prompts")


@events.init.add_listener
def _weights(environment: Any, **_: Any) -> None:
    DecodeUser.weight = environment.parsed_options.decode_weight
    PrefillUser.weight = environment.parsed_options.prefill_weight


class KvUser(User):
    """Reports each call of the client to locust, with what it moved and how it failed."""

    abstract = True
    wait_time = constant(0)

    def on_start(self) -> None:
        """Connect."""
        self.options = self.environment.parsed_options
        self.client = Client(self.host)
        self.rng = np.random.default_rng(0)

    def on_stop(self) -> None:
        """Close the connection."""
        self.client.close()

    def tokens(self, count: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Gaussian K and V: float16 `[layers, kv_heads, count, head_dim]` each."""
        shape = (self.options.layers, self.options.kv_heads, count, self.options.head_dim)
        k, v = (self.rng.standard_normal(shape, np.float32).astype(np.float16) for _ in "kv")
        return k, v

    def timed(self, name: str, nbytes: int, call: Callable[[], Any]) -> Any:
        """Do a call and report it."""
        start, error, answer = time.perf_counter(), None, None
        try:
            answer = call()
        except Exception as failure:
            error = failure
        self.environment.events.request.fire(
            request_type="KV",
            name=name,
            response_time=(time.perf_counter() - start) * 1e3,
            response_length=nbytes,
            exception=error,
            context={},
        )
        return answer


def checked(appended: Any, length: int) -> Any:
    """The answer, if the session is as long as it should be."""
    if appended.length != length:
        raise AssertionError(f"the session has {appended.length} tokens, not {length}")
    return appended


class DecodeUser(KvUser):
    """One token per step, over many sessions in turn."""

    def on_start(self) -> None:
        """Open the sessions."""
        super().on_start()
        self.sessions = [self.client.session(f"decode-{uuid4().hex}") for _ in range(self.options.sessions)]
        self.lengths = [0] * len(self.sessions)
        self.step = 0
        self.k, self.v = self.tokens(1)

    @task
    def decode(self) -> None:
        """Append one token to the next session."""
        turn = self.step % len(self.sessions)
        self.step += 1
        session, length = self.sessions[turn], self.lengths[turn]
        call = lambda: checked(session.append(self.k, self.v, position=length), length + 1)  # noqa: E731
        if self.timed("append one token", self.k.nbytes + self.v.nbytes, call):
            self.lengths[turn] += 1


class PrefillUser(KvUser):
    """A whole prompt into a fresh session, which is then deleted."""

    def on_start(self) -> None:
        """Make the prompt."""
        super().on_start()
        self.k, self.v = self.tokens(self.options.prefill_tokens)

    @task
    def prefill(self) -> None:
        """Append the prompt."""
        session, count = self.client.session(f"prefill-{uuid4().hex}"), self.options.prefill_tokens
        call = lambda: checked(session.append(self.k, self.v, position=0), count)  # noqa: E731
        if self.timed("append a prompt", self.k.nbytes + self.v.nbytes, call):
            self.timed("delete", 0, session.delete)
