"""Write the generated parts of `docs/`: tables of settings and of files; `python scripts/write_docs.py`, or `--check`.

The settings come from the dataclasses and their docstrings, the files from git and each file's first line. Text outside
the markers `<!-- begin NAME -->` and `<!-- end NAME -->` is written by hand and stays.
"""

import argparse
import ast
import inspect
import subprocess
import sys
import textwrap
import types
import typing
from collections.abc import Callable
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from rlhf.config.commands import (
    BestOfNJob,
    ChatJob,
    DemoJob,
    EvaluateJob,
    GenerateJob,
    PushJob,
    ReplayJob,
    ReportJob,
    StatusJob,
    WatchJob,
)
from rlhf.config.compare import CompareJob
from rlhf.config.jobs import DPOJob, PPOJob, RewardJob, SFTJob
from rlhf.config.mappings import is_mapping
from rlhf.config.serving import ServeRewardJob

ROOT = Path(__file__).parents[1]
JOBS: dict[str, type] = {
    "rlhf ppo": PPOJob,
    "rlhf sft": SFTJob,
    "rlhf reward": RewardJob,
    "rlhf dpo": DPOJob,
    "rlhf evaluate": EvaluateJob,
    "rlhf best-of-n": BestOfNJob,
    "rlhf generate": GenerateJob,
    "rlhf chat": ChatJob,
    "rlhf serve-reward": ServeRewardJob,
    "rlhf compare": CompareJob,
    "rlhf status": StatusJob,
    "rlhf watch": WatchJob,
    "rlhf report": ReportJob,
    "rlhf push": PushJob,
    "rlhf replay": ReplayJob,
    "rlhf demo": DemoJob,
}
PACKAGES = ("rlhf", "tabular", "scripts", "examples", "configs", "recipes")
"""Folders with a row for each file; those that do not exist are left out."""
UNLISTED = (".png", ".txt", ".jinja", ".json", ".jsonl", ".csv", ".html", ".css", ".js", ".svg")
"""Endings of files that belong to the file beside them and have no row."""


# ------------------------------------------------------------------------------------------------------- settings


def settings_tables() -> str:
    """One section for each group of settings, with a row for each setting."""
    readers: dict[str, list[str]] = {}
    groups: dict[str, type] = {}
    for command, job in JOBS.items():
        for name, kind in _groups(job).items():
            groups.setdefault(name, kind)
            readers.setdefault(name, []).append(f"`{command}`")
    parts = [_job_section(command, job) for command, job in JOBS.items()]
    parts += [_section(f"`{name}`", kind, f"{name}.", readers[name]) for name, kind in groups.items()]
    return "\n\n".join(parts)


def _groups(kind: type, prefix: str = "") -> dict[str, type]:
    """Dotted name -> dataclass of every group of settings in a job, nested groups included."""
    groups: dict[str, type] = {}
    for name, hint in typing.get_type_hints(kind).items():
        if is_dataclass(hint):
            groups[prefix + name] = typing.cast(type, hint)
            groups |= _groups(typing.cast(type, hint), f"{prefix}{name}.")
        elif is_mapping(hint) and is_dataclass(typing.get_args(hint)[1]):
            groups[f"{prefix}{name}.NAME"] = typing.get_args(hint)[1]
    return groups


def _job_section(command: str, job: type) -> str:
    groups = ", ".join(f"`{name}`" for name in _groups(job))
    section = _section(f"`{command}`", job, "", [])
    return f"{section}\n\nAnd the groups {groups}." if groups else section


def _section(title: str, kind: type, prefix: str, readers: list[str]) -> str:
    summary = " ".join((inspect.getdoc(kind) or "").split("\n\n")[0].split())
    used = f" Read by {', '.join(readers)}." if readers else ""
    meanings = attribute_docs(kind)
    hints = typing.get_type_hints(kind)
    rows = []
    for item in fields(kind):  # pyright: ignore[reportArgumentType]
        hint = hints[item.name]
        if not is_dataclass(hint):
            meaning = _cell(meanings.get(item.name, ""))
            rows.append(f"| `{prefix}{item.name}` | {_type_text(hint)} | {_default_text(item)} | {meaning} |")
    return f"### {title}\n\n{summary}{used}\n\n| setting | type | default | meaning |\n|---|---|---|---|\n" + "\n".join(
        rows
    )


def attribute_docs(kind: type) -> dict[str, str]:
    """Name -> the string below each attribute of a class and of its base classes."""
    docs: dict[str, str] = {}
    for base in reversed(kind.__mro__[:-1]):
        body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0]
        assert isinstance(body, ast.ClassDef)
        for statement, following in zip(body.body, body.body[1:], strict=False):
            if isinstance(statement, ast.AnnAssign) and isinstance(following, ast.Expr):
                assert isinstance(statement.target, ast.Name)
                docs[statement.target.id] = " ".join(str(ast.literal_eval(following.value)).split())
    return docs


def _type_text(hint: Any) -> str:
    origin = typing.get_origin(hint)
    arguments = typing.get_args(hint)
    if hint is type(None):
        return "null"
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type_text(part) for part in arguments)
    if origin is list:
        return f"list of {_type_text(arguments[0])}"
    if origin is dict:
        return "settings under names"
    if origin is tuple:
        return f"{len(arguments)} numbers"
    return {"str": "text", "int": "integer", "float": "number", "bool": "true or false"}[hint.__name__]


def _default_text(item: Field[Any]) -> str:
    value = item.default if item.default is not MISSING else typing.cast(Callable[[], Any], item.default_factory)()
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return f"`[{', '.join(map(str, value))}]`"
    return f"`{value}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


# ---------------------------------------------------------------------------------------------------------- files


def file_tables() -> str:
    """One section for each folder, with a row for each file."""
    tracked = tracked_files()
    sections = []
    for package in PACKAGES:
        inside = [path for path in tracked if path.parts[0] == package]
        for folder in sorted({path.parent for path in inside}):
            rows = [path for path in inside if path.parent == folder and _is_listed(path)]
            if not rows:
                continue
            summary = _first_line(folder / "__init__.py") if folder / "__init__.py" in inside else ""
            table = "\n".join(f"| [`{path.name}`](../{path}) | {_cell(_first_line(path))} |" for path in rows)
            header = f"### `{folder}/`\n\n" + (f"{summary}\n\n" if summary else "")
            sections.append(f"{header}| file | what it contains |\n|---|---|\n{table}")
    return "\n\n".join(sections)


def tracked_files() -> list[PurePosixPath]:
    """Files of the repository that git tracks, or would track."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    return sorted({PurePosixPath(name) for name in names if name and (ROOT / name).is_file()})


def _is_listed(path: PurePosixPath) -> bool:
    return path.name != "__init__.py" and path.suffix not in UNLISTED


def _first_line(path: PurePosixPath) -> str:
    """The first line of a module's docstring, of a YAML file's comment, or of a page's heading."""
    text = (ROOT / path).read_text(encoding="utf-8")
    if path.suffix == ".py":
        return (ast.get_docstring(ast.parse(text)) or "").split("\n")[0]
    return text.split("\n")[0].lstrip("# ").rstrip(":")


# ---------------------------------------------------------------------------------------------------------- pages

GENERATED = {"docs/settings.md": ("settings", settings_tables), "docs/layout.md": ("files", file_tables)}
"""Page -> the name of its generated part, and the function that writes it."""


def updated(page: str) -> str:
    """The text of a page with its generated part written anew."""
    name, write = GENERATED[page]
    begin = f"<!-- begin {name} -->"
    end = f"<!-- end {name} -->"
    text = (ROOT / page).read_text(encoding="utf-8")
    before, rest = text.split(begin)
    return f"{before}{begin}\n\n{write()}\n\n{end}{rest.split(end)[1]}"


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where a page is out of date")
    check_only = parser.parse_args().check
    outdated = [page for page in GENERATED if updated(page) != (ROOT / page).read_text(encoding="utf-8")]
    for page in outdated:
        print(f"{page} is out of date" if check_only else f"wrote {page}")
        if not check_only:
            (ROOT / page).write_text(updated(page), encoding="utf-8")
    return int(check_only and bool(outdated))


if __name__ == "__main__":
    sys.exit(main())
