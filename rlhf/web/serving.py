"""Starting a local web server: its packages, its port, its printed address, and its end."""

import contextlib
import importlib.util
import signal
import socket
import threading
from typing import Any

from rlhf.errors import UserError

FIRST_PORT = 8765
PORTS = 50
"""Ports that are tried where none is set."""


def check_packages(command: str) -> None:
    """Raise UserError where the server's packages are missing."""
    for package in ("starlette", "uvicorn"):
        if importlib.util.find_spec(package) is None:
            raise UserError(f"{command} needs {package}, which is not installed: pip install 'tabular-rlhf[people]'")


def listen(host: str, port: int | None) -> socket.socket:
    """A socket that is bound but not yet served, so that its port can be printed.

    Raises:
        UserError: the port is taken, or the address is none of this machine's.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    ports = range(FIRST_PORT, FIRST_PORT + PORTS) if port is None else [port]
    problem: OSError | None = None
    for candidate in ports:
        listener = socket.socket(family, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, candidate))
            listener.listen()  # a browser that is quicker than the server waits
            return listener
        except OSError as error:
            listener.close()
            problem = error
    assert problem is not None
    named = f"port is {port}, which" if port is not None else f"host is {host}, which"
    raise UserError(f"{named} cannot be listened on ({problem.strerror}); name another") from problem


def address_of(host: str, port: int, token: str) -> str:
    """The address to open, with the token."""
    name = f"[{host}]" if ":" in host else "127.0.0.1" if host == "0.0.0.0" else host
    return f"http://{name}:{port}/?token={token}"


def tunnel(port: int) -> str:
    """The command that reaches a loopback server from another machine."""
    return f"ssh -L {port}:127.0.0.1:{port} HOST"


def serve(app: Any, listener: socket.socket) -> None:
    """Serve until SIGINT or SIGTERM."""
    import uvicorn

    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off"))
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _interrupt)  # so that callers clean up
    with contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[listener])


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt
