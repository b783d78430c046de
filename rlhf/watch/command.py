"""`rlhf watch`: serve the page until Ctrl-C."""

import secrets
from pathlib import Path

from rlhf.config.commands import WatchJob
from rlhf.errors import UserError
from rlhf.web.serving import address_of, check_packages, listen, serve, tunnel


def watch(job: WatchJob) -> None:
    """Serve the page of all runs in a folder.

    Raises:
        UserError: a package is missing, there is no such folder, or the port is taken.
    """
    check_packages("rlhf watch")
    from rlhf.watch.runs import Runs
    from rlhf.watch.server import make_app

    folder = Path(job.folder).expanduser()
    if not folder.is_dir():
        raise UserError(f"there is no folder {job.folder}; name the one that holds your runs: `rlhf watch FOLDER`")
    runs = Runs(folder)
    listener = listen(job.host, job.port)
    token, port = secrets.token_urlsafe(24), listener.getsockname()[1]
    try:
        print(f"\n{len(runs.list())} runs in {folder}, at\n\n    {address_of(job.host, port, token)}\n")
        print(f"Runs that start later appear by themselves. From another machine: {tunnel(port)}")
        print("Ctrl-C ends the page; it does not touch the runs.", flush=True)
        serve(make_app(runs, token, job.host), listener)
    finally:
        listener.close()
