"""`rlhf compare`: make pairs, open the page, export what people prefer; or print the summary."""

import secrets
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
from rlhf.web.serving import address_of, check_packages, listen, serve, tunnel

EXPORT_EVERY = 30.0
"""Seconds between exports while the page is open; the database has every answer at once."""
MARK = "<!-- rlhf compare: summary -->"
"""First line of a summary page, by which one that may be replaced is recognised."""


def compare(job: CompareJob) -> None:
    """Serve the page until Ctrl-C, then export the preferences.

    Raises:
        UserError: a package is missing, a source cannot be used, there is nothing to compare, or the port is taken.
    """
    check_packages("rlhf compare")
    assert job.annotator is not None
    output = Path(job.output).expanduser()
    source = open_source(job) if job.sources else None
    if source is None and not output.with_name(f"{output.name}.db").exists():
        raise UserError(f"{job.output} has no comparison to continue; name what to compare: `rlhf compare SOURCE`")
    listener = listen(job.host, job.port)
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


def _serve(job: CompareJob, store: Store, production: Production, listener: socket.socket) -> None:
    """Serve until a signal, and export now and then."""
    from rlhf.people.server import make_app

    assert job.annotator is not None
    token = secrets.token_urlsafe(24)
    app = make_app(store, job.annotator, token, host=job.host, production=production)
    port = listener.getsockname()[1]
    print(f"\n{job.annotator} compares at\n\n    {address_of(job.host, port, token)}\n")
    print(f"Preferences are saved at once in {store.path}. From another machine: {tunnel(port)}")
    print("Ctrl-C ends and writes the preferences; the same command continues.", flush=True)
    ended = threading.Event()
    exporter = threading.Thread(target=_export_now_and_then, args=(store, ended), daemon=True)
    exporter.start()
    try:
        serve(app, listener)
    finally:
        ended.set()
        exporter.join()


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
