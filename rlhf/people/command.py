"""`rlhf compare`: make pairs, open the page, export what people prefer; or print the summary."""

import importlib.util
import secrets
import signal
import socket
import threading
from pathlib import Path
from typing import Any

from rlhf.config.compare import CompareJob
from rlhf.errors import UserError
from rlhf.people.production import Production
from rlhf.people.sources import open_source
from rlhf.people.store import Store
from rlhf.run.files import write_text

FIRST_PORT = 8765
PORTS = 50
"""Ports that are tried where none is set."""
EXPORT_EVERY = 30.0
"""Seconds between exports while the page is open; the database has every answer at once."""
MARK = "<!-- rlhf compare: summary -->"
"""First line of a summary page, by which one that may be replaced is recognised."""


def compare(job: CompareJob) -> None:
    """Serve the page until Ctrl-C, then export the preferences.

    Raises:
        UserError: a package is missing, a source cannot be used, there is nothing to compare, or the port is taken.
    """
    for package in ("starlette", "uvicorn"):
        if importlib.util.find_spec(package) is None:
            raise UserError(f"rlhf compare needs {package}, which is not installed: pip install 'tabular-rlhf[people]'")
    assert job.annotator is not None
    output = Path(job.output).expanduser()
    source = open_source(job) if job.sources else None
    if source is None and not output.with_name(f"{output.name}.db").exists():
        raise UserError(f"{job.output} has no comparison to continue; name what to compare: `rlhf compare SOURCE`")
    listener = _listen(job.host, job.port)
    store = Store(job.output, seed=job.seed, repeats=job.repeats, overlap=job.overlap)
    production = Production(source, store, job.reward_model, job.order == "uncertain")
    try:
        if source is not None and store.count() == 0:
            print("making the first pairs ...", flush=True)
        production.wait_for_first()
        if store.count() == 0:
            raise UserError("there is nothing to compare: every pair has two equal answers")
        _serve(job, store, production, listener)
    finally:
        listener.close()
        production.stop()
    progress = store.progress(job.annotator)
    print(f"\n{progress.answered} answers of {job.annotator}; all preferences are in {store.export()}")
    print(f"summary:      rlhf compare --summary {job.output}")
    print(f"reward model: rlhf reward --model.path MODEL --data.path {job.output}")


def _listen(host: str, port: int | None) -> socket.socket:
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


def _serve(job: CompareJob, store: Store, production: Production, listener: socket.socket) -> None:
    """Serve until a signal, and export now and then."""
    import uvicorn

    from rlhf.people.server import make_app

    assert job.annotator is not None
    token = secrets.token_urlsafe(24)
    app = make_app(store, job.annotator, token, host=job.host, production=production)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off"))
    host, port = job.host, listener.getsockname()[1]
    name = f"[{host}]" if ":" in host else "127.0.0.1" if host == "0.0.0.0" else host
    print(f"\n{job.annotator} compares at\n\n    http://{name}:{port}/?token={token}\n")
    print(f"Preferences are saved at once in {store.path}. From another machine: ssh -L {port}:127.0.0.1:{port} HOST")
    print("Ctrl-C ends and writes the preferences; the same command continues.", flush=True)
    ended = threading.Event()
    exporter = threading.Thread(target=_export_now_and_then, args=(store, ended), daemon=True)
    exporter.start()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _interrupt)  # so that it exports too
    try:
        server.run(sockets=[listener])
    except KeyboardInterrupt:
        pass
    finally:
        ended.set()
        exporter.join()


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def _export_now_and_then(store: Store, ended: threading.Event) -> None:
    exported = None
    while not ended.wait(EXPORT_EVERY):
        if (version := store.version()) != exported:
            store.export()
            exported = version


def summarise_file(job: CompareJob) -> dict[str, Any]:
    """Print the summary of the preferences in `job.summary`, and write it as a page where one is named.

    Raises:
        UserError: there are no answers, or the page would replace another file.
    """
    from dataclasses import asdict

    from rich.console import Console

    from rlhf.people.summary import render, summarise, table

    assert job.summary is not None
    output = Path(job.summary).expanduser()
    if not output.with_name(f"{output.name}.db").exists():
        raise UserError(f"{job.summary} has no database {output.name}.db beside it; name a file of `rlhf compare`")
    page = None if job.page is None else Path(job.page).expanduser()
    if page is not None and page.exists() and not page.read_text("utf-8", errors="replace").startswith(MARK):
        raise UserError(f"{job.page} exists and is no summary; name another --page")
    summary = summarise(Store(job.summary))
    if summary.everybody.answers == 0:
        raise UserError(f"{job.summary} has no answers yet; give some with `rlhf compare --output {job.summary}`")
    console = Console()
    for part in table(summary):
        console.print(part)
    if page is not None:
        page.parent.mkdir(parents=True, exist_ok=True)
        write_text(page, f"{MARK}\n{render(summary)}")
        console.print(f"page: {page}")
    return asdict(summary)
