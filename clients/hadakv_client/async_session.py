"""Asynchronous handle on one session."""

from typing import Any, Literal, Protocol, TypeVar, Unpack, overload

from hadakv_client.flow import SessionFlows
from hadakv_client.http.arguments import Position, SessionOptions, TokenProgress
from hadakv_client.http.files import FileDestination, PathLike, Progress
from hadakv_client.http.kv import keys_values
from hadakv_client.http.responses import Form, Layout, ValueForm
from hadakv_client.http.tensors import Array
from hadakv_client.parts.read import Read
from hadakv_client.results import AppendResult, Range, SessionInfo, StoredAppend
from hadakv_client.retries import Flow
from hadakv_client.turns import AsyncTurns
from hadakv_kernels import Encoded

T = TypeVar("T")


class _Runner(Protocol):
    async def __call__(self, flow: Flow[T]) -> T: ...


class AsyncSession:
    """Asynchronous handle on one session: arguments, results and errors of `Session`. Tasks may share it."""

    def __init__(self, run: _Runner, flows: SessionFlows) -> None:
        self._run = run
        self._flows = flows
        self._turns = AsyncTurns()

    async def _change(self, flow: Flow[T]) -> T:
        """Run a flow that changes the session, when no other caller of this handle runs one."""
        return await self._turns.run(lambda: self._run(self._flows.changing(flow)))

    @property
    def id(self) -> str:
        """Return the session id."""
        return self._flows.id

    @overload
    async def append(
        self,
        k: Any,
        v: Any = None,
        *,
        layer: int = 0,
        position: Position | None = None,
        minimal: Literal[False] = False,
        allow_zeros: bool = False,
        progress: TokenProgress | None = None,
    ) -> StoredAppend: ...
    @overload
    async def append(
        self,
        k: Any,
        v: Any = None,
        *,
        layer: int = 0,
        position: Position | None = None,
        minimal: bool,
        allow_zeros: bool = False,
        progress: TokenProgress | None = None,
    ) -> AppendResult: ...
    async def append(  # noqa: PLR0913 - options, by keyword
        self,
        k: Any,
        v: Any = None,
        *,
        layer: int = 0,
        position: Position | None = None,
        minimal: bool = False,
        allow_zeros: bool = False,
        progress: TokenProgress | None = None,
    ) -> AppendResult:
        """Encode keys and values and append them to the session. See `Session.append`."""
        kv = keys_values(k, v, allow_zeros=allow_zeros)
        return await self._change(self._flows.append(kv, layer, position, minimal=minimal, progress=progress))

    @overload
    async def read(
        self,
        start: int | None = None,
        stop: int | None = None,
        *,
        layers: tuple[int, int] | None = None,
        form: Literal["packed"] = "packed",
        layout: Layout = "linear",
        out: tuple[Encoded, Encoded] | None = None,
        progress: TokenProgress | None = None,
    ) -> Range[Encoded]: ...
    @overload
    async def read(
        self,
        start: int | None = None,
        stop: int | None = None,
        *,
        layers: tuple[int, int] | None = None,
        form: ValueForm,
        layout: Layout = "linear",
        out: tuple[Array, Array] | None = None,
        progress: TokenProgress | None = None,
    ) -> Range[Array]: ...
    async def read(  # noqa: PLR0913 - options, most by keyword
        self,
        start: int | None = None,
        stop: int | None = None,
        *,
        layers: tuple[int, int] | None = None,
        form: Form = "packed",
        layout: Layout = "linear",
        out: tuple[Any, Any] | None = None,
        progress: TokenProgress | None = None,
    ) -> Range[Any]:
        """Read a range of tokens. See `Session.read`."""
        return await self._run(self._flows.read(Read(self.id, start, stop, layers, form, layout, out, progress)))

    async def truncate(self, length: int) -> SessionInfo:
        """Delete tokens from a position on, in all layers. See `Session.truncate`."""
        return await self._change(self._flows.truncate(length))

    async def fork(self, session_id: str, length: int | None = None) -> "AsyncSession":
        """Create a session with tokens of this one. See `Session.fork`."""
        return AsyncSession(self._run, await self._run(self._flows.fork(session_id, length)))

    async def export(self, path: PathLike, progress: Progress | None = None) -> None:
        """Write the session to one safetensors file. See `Session.export`."""
        await self._run(self._flows.export_to(FileDestination(path, progress)))

    async def info(self) -> SessionInfo:
        """Get the description of the session. See `Session.info`."""
        return await self._run(self._flows.info())

    async def create(self, **options: Unpack[SessionOptions]) -> SessionInfo:
        """Create the session without tokens. See `Session.create`."""
        return await self._change(self._flows.create(options))

    async def delete(self) -> None:
        """Delete the session. See `Session.delete`."""
        await self._change(self._flows.delete())
