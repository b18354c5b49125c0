"""The handle on one session, asynchronous."""

from typing import Any, Literal, Protocol, TypeVar, Unpack, overload

from hadakv_client.flow import Flow, SessionFlows
from hadakv_client.http.calls import Position, SessionOptions
from hadakv_client.http.files import PathLike, Progress, Target
from hadakv_client.http.responses import Form, Layout, ValueForm
from hadakv_client.http.tensors import Array
from hadakv_client.results import Appended, Placed, Range, SessionInfo
from hadakv_kernels import Encoded

T = TypeVar("T")


class _Runner(Protocol):
    async def __call__(self, flow: Flow[T]) -> T: ...


class AsyncSession:
    """`Session` for asyncio: the same arguments, results and errors, for one writer at a time."""

    def __init__(self, run: _Runner, flows: SessionFlows) -> None:
        self._run = run
        self._flows = flows

    @property
    def id(self) -> str:
        """The session's id."""
        return self._flows.id

    @overload
    async def append(
        self, k: Any, v: Any, *, layer: int = 0, position: Position | None = None, minimal: Literal[False] = False
    ) -> Appended: ...
    @overload
    async def append(
        self, k: Any, v: Any, *, layer: int = 0, position: Position | None = None, minimal: bool
    ) -> Placed: ...
    async def append(
        self, k: Any, v: Any, *, layer: int = 0, position: Position | None = None, minimal: bool = False
    ) -> Placed:
        """Encode keys and values and keep them at the end of the session: see `Session.append`."""
        return await self._run(self._flows.append(k, v, layer, position, minimal=minimal))

    @overload
    async def read(
        self,
        start: int | None = None,
        stop: int | None = None,
        *,
        layers: tuple[int, int] | None = None,
        form: Literal["packed"] = "packed",
        layout: Layout = "linear",
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
    ) -> Range[Array]: ...
    async def read(
        self,
        start: int | None = None,
        stop: int | None = None,
        *,
        layers: tuple[int, int] | None = None,
        form: Form = "packed",
        layout: Layout = "linear",
    ) -> Range[Any]:
        """Read a range of tokens back: see `Session.read`."""
        return await self._run(self._flows.read(start, stop, layers, form, layout))

    async def truncate(self, length: int) -> SessionInfo:
        """See `Session.truncate`."""
        return await self._run(self._flows.truncate(length))

    async def fork(self, session_id: str, length: int | None = None) -> "AsyncSession":
        """See `Session.fork`."""
        return AsyncSession(self._run, await self._run(self._flows.fork(session_id, length)))

    async def export(self, path: PathLike, progress: Progress | None = None) -> None:
        """Write the session to one safetensors file: see `Session.export`."""
        await self._run(self._flows.export(Target(path, progress)))

    async def info(self) -> SessionInfo:
        """Describe the session: see `Session.info`."""
        return await self._run(self._flows.info())

    async def create(self, **options: Unpack[SessionOptions]) -> SessionInfo:
        """Create the session before anything is appended: see `Session.create`."""
        return await self._run(self._flows.create(options))

    async def delete(self) -> None:
        """Forget the session: see `Session.delete`."""
        await self._run(self._flows.delete())
