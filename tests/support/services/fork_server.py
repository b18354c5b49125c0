"""Start services quickly: fork them from a process that has imported the service already.

A start and stop then takes 0.1 s of processor time instead of 1 s: nothing is imported, and at the end Python does not
dismantle its modules. `install` replaces `subprocess.Popen`: the command
`python -m hadakv_service ...` is then run by a fork of the server in this file. Every other command, and every option
that the server does not know, is started by the ordinary `Popen`. The forked service runs the same `__main__` with the
same arguments, environment and exit code, and is a child of the test process, so that waiting and signals are as usual.

Linux only: it needs a subreaper, and Metal does not survive a fork. `make test-all` starts services without it.
"""

import atexit
import ctypes
import gc
import inspect
import json
import os
import runpy
import socket
import subprocess
import sys
import threading
import warnings
from typing import Any

MODULE = "hadakv_service"
PR_SET_CHILD_SUBREAPER = 36
MAX_REQUEST_NBYTES = 1 << 20
PID_NBYTES = 8
# Python, the allocator and the loader read these when a process starts, so a fork would ignore a change.
STARTUP_VARIABLES = ("PYTHON", "LD_", "MALLOC_", "GLIBC_", "OMP_", "OPENBLAS_")
# Arguments of `Popen._execute_child` that a fork can do without, with the value that means "not asked for".
UNSUPPORTED = {"preexec_fn": None, "pass_fds": (), "shell": False, "p2cread": -1, "gid": None, "gids": None}
UNSUPPORTED |= {"uid": None, "umask": -1, "process_group": -1, "executable": None}

OrdinaryPopen = subprocess.Popen


def startup_environment() -> dict[str, str]:
    """Return the variables that only a new process would read."""
    return {name: value for name, value in os.environ.items() if name.startswith(STARTUP_VARIABLES)}


class ForkServer:
    """Process that forks services. Owned by the test process, which is the parent of what it forks."""

    def __init__(self) -> None:
        self.startup_environment = startup_environment()
        self._socket, theirs = socket.socketpair()
        with theirs:
            self._process = OrdinaryPopen(
                [sys.executable, __file__, str(theirs.fileno())], pass_fds=[theirs.fileno()], stdout=subprocess.DEVNULL
            )

    def fork(self, flags: list[str], options: dict[str, Any]) -> int:
        """Start a service.

        Args:
            flags: arguments of the service.
            options: arguments of `Popen._execute_child` by name.

        Returns:
            The process id.
        """
        request: dict[str, Any] = {"flags": flags, "environment": dict(options["env"] or os.environ)}
        request |= {"directory": os.fspath(options["cwd"] or os.getcwd()), "session": options["start_new_session"]}
        # Without a redirection the service writes where this process writes at the moment.
        outputs = [options["c2pwrite"], options["errwrite"]]
        outputs = [fd if fd != -1 else standard for fd, standard in zip(outputs, (1, 2), strict=True)]
        socket.send_fds(self._socket, [json.dumps(request).encode()], outputs)
        pid = self._socket.recv(PID_NBYTES)
        if not pid:
            raise RuntimeError("the fork server has exited")
        return int.from_bytes(pid, sys.byteorder)

    def close(self) -> None:
        """Stop the server. The services go on."""
        self._socket.close()
        self._process.wait()


class ForkingPopen(OrdinaryPopen):  # type: ignore[type-arg]  # the base is generic in what its pipes carry
    """`Popen` that has the fork server start the service."""

    server: ForkServer | None = None

    def _execute_child(self, *arguments: Any) -> None:
        options = inspect.signature(OrdinaryPopen._execute_child).bind(self, *arguments).arguments
        command = options["args"]
        if not isinstance(command, (list, tuple)) or [*command[:3]] != [sys.executable, "-m", MODULE]:
            return super()._execute_child(*arguments)
        environment = options["env"] or os.environ
        chosen = {name: value for name, value in environment.items() if name.startswith(STARTUP_VARIABLES)}
        if any(options.get(name, value) != value for name, value in UNSUPPORTED.items()):
            return super()._execute_child(*arguments)
        ForkingPopen.server = ForkingPopen.server or ForkServer()
        if chosen != self.server.startup_environment:
            return super()._execute_child(*arguments)
        self.pid = self.server.fork([*map(os.fspath, command[3:])], options)
        self._child_created = True
        pipes = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
        self._close_pipe_fds(*(options[name] for name in pipes))
        return None


def install() -> None:
    """Have `subprocess.Popen` fork services, where that works."""
    if sys.platform != "linux":
        return
    # What the server forks is handed to this process when its own parent ends.
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0:
        subprocess.Popen = ForkingPopen  # type: ignore[misc]


def uninstall() -> None:
    """Restore `subprocess.Popen`, and stop the server."""
    subprocess.Popen = OrdinaryPopen  # type: ignore[misc]
    if ForkingPopen.server:
        ForkingPopen.server.close()
        ForkingPopen.server = None


def serve(connection: socket.socket) -> list[str] | None:
    """Fork a service for each request.

    Returns:
        In the forked process the arguments of the service; in the server None, when the test process has ended.
    """
    while True:
        message, fds, _, _ = socket.recv_fds(connection, MAX_REQUEST_NBYTES, 2)
        if not message:
            return None
        readable, writable = os.pipe()
        helper = fork()
        if helper == 0:
            pid = fork()
            if pid == 0:
                for fd in (connection.detach(), readable, writable):
                    os.close(fd)
                return prepare(json.loads(message), fds)
            os.write(writable, pid.to_bytes(PID_NBYTES, sys.byteorder))
            os._exit(0)
        # Once the helper has ended, the service is a child of the test process.
        os.waitpid(helper, 0)
        connection.sendall(os.read(readable, PID_NBYTES))
        for fd in (readable, writable, *fds):
            os.close(fd)


def fork() -> int:
    """Fork this process. NumPy's idle threads, about which Python 3.12 warns, do not survive and are not needed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def prepare(request: dict[str, Any], outputs: list[int]) -> list[str]:
    """Make a forked process look like a started one; return the arguments of the service."""
    if request["session"]:
        os.setsid()
    for standard, fd in zip((1, 2), outputs, strict=True):
        os.dup2(fd, standard)
        os.close(fd)
    os.chdir(request["directory"])
    os.environ.clear()
    os.environ.update(request["environment"])
    flags: list[str] = request["flags"]
    return flags


def leave(code: object) -> None:
    """End the process as SystemExit does, except that Python does not take apart what it has imported."""
    if code is not None and not isinstance(code, int):
        sys.stderr.write(f"{code}\n")
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)


if __name__ == "__main__":
    import hadakv_service.__main__
    import hadakv_service.startup.arguments
    import hadakv_service.startup.serve

    # The main module is run anew in each fork, under the name that it has in a started process.
    del sys.modules["hadakv_service.__main__"], hadakv_service.__main__
    gc.collect()
    gc.freeze()
    arguments = serve(socket.socket(fileno=int(sys.argv[1])))
    if arguments is not None:
        sys.argv[1:] = arguments
        # Outside every function, so that an exception ends the process as it ends a started one.
        try:
            runpy.run_module(MODULE, run_name="__main__", alter_sys=True)
        except SystemExit as end:
            leave(end.code)
