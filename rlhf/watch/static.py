"""`rlhf report A B`: the page of `rlhf watch` as one file, with the data of some runs inside."""

import json
from collections.abc import Sequence
from pathlib import Path

from rlhf.errors import UserError
from rlhf.report.report import GENERATOR, is_report
from rlhf.report.run_files import load
from rlhf.run.files import write_bytes
from rlhf.watch.runs import overlay

PAGE = Path(__file__).with_name("page")


def write_overlay(folders: Sequence[Path], output: Path) -> Path:
    """Write one page of several runs.

    Raises:
        UserError: a folder is no run folder or has no metrics, one is named twice, or `output` is another file.
    """
    if output.exists() and not is_report(output):
        raise UserError(f"{output} exists and is no report; name another file with --output")
    for folder in folders:
        load(folder)
    page = (PAGE / "watch.html").read_text(encoding="utf-8")
    style, script = ((PAGE / name).read_text(encoding="utf-8") for name in ("watch.css", "watch.js"))
    # In a script element only "<" could end it; JSON reads the escape as the same character.
    data = json.dumps(overlay(folders)).replace("<", "\\u003c")
    page = page.replace('<link rel="icon" href="/static/icon.svg">\n', "")
    page = page.replace("<head>", f"<head>\n{GENERATOR.decode()}", 1)
    page = page.replace('<link rel="stylesheet" href="/static/watch.css">', f"<style>\n{style}</style>")
    page = page.replace(
        '<script src="/static/watch.js" defer></script>',
        f'<script type="application/json" id="data">{data}</script>\n<script type="module">\n{script}</script>',
    )
    output.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(output, page.encode("utf-8"))
    return output
