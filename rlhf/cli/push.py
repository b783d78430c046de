"""`rlhf push`: the model of a run and its card, uploaded to the Hugging Face hub."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlhf.config.commands import PushJob
from rlhf.errors import UserError
from rlhf.report.model_card import model_card
from rlhf.report.run_files import load

ENDINGS = (".safetensors", ".json", ".jinja", ".model", ".txt")
"""Of a model's and a tokenizer's files; those of other kinds, such as `.env`, are never uploaded."""
CRITIC = ("value_head.safetensors", "critic/")
ADAPTER = "adapter_config.json"


@dataclass(frozen=True)
class Upload:
    """What is sent."""

    folder: Path
    files: dict[str, int]
    """Path in the folder -> size in bytes."""
    left_out: list[str]
    replaced: dict[str, bytes]
    """Files whose content is not that of the folder."""


def push(job: PushJob) -> None:
    """Print what will be uploaded, then upload it.

    Raises:
        UserError: there is no model, the base of an adapter is a local folder, there is no token, the hub cannot be
            reached or refuses, or the repository has a model already.
    """
    upload = plan(job)
    width = max(map(len, upload.files))
    for name, size in upload.files.items():
        print(f"  {name:<{width}}  {_size(size)}")
    if upload.left_out:
        print(f"not uploaded: {', '.join(upload.left_out)}")
    visibility = "public" if job.public else "private"
    print(
        f"{len(upload.files)} files, {_size(sum(upload.files.values()))}, to {job.repo} ({visibility} where it is new)"
    )
    if job.dry_run:
        return
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise UserError("HF_HUB_OFFLINE is set, so that nothing can be uploaded; unset it")
    print(_upload(job, upload))


def plan(job: PushJob) -> Upload:
    """The files of a run's model that are uploaded.

    Raises:
        UserError: there is no model, or it is an adapter over a local folder.
    """
    run = Path(job.run or "").expanduser()
    if not run.is_dir():
        raise UserError(f"there is no run folder at {run}")
    folder = run / "model" if (run / "model").is_dir() else run
    if not any((folder / name).is_file() for name in ("config.json", ADAPTER)):
        unfinished = (run / "config.yaml").is_file()
        reason = "the run has not finished; continue it with --resume auto" if unfinished else "it has no config.json"
        raise UserError(f"{run} holds no model: {reason}")
    files, left_out = {}, []
    for path in sorted(item for item in folder.rglob("*") if item.is_file()):
        name = path.relative_to(folder).as_posix()
        is_critic = name.startswith(CRITIC)
        is_hidden = any(part.startswith(".") for part in Path(name).parts)
        is_model = (name == "README.md" or name.endswith(ENDINGS)) and not is_hidden and not path.is_symlink()
        if is_model and ("/" not in name or is_critic) and (job.critic or not is_critic):
            files[name] = path.stat().st_size
        else:
            left_out.append(name)
    replaced = {}
    if ADAPTER in files:
        replaced = _with_base(folder / ADAPTER, job.base)
    elif job.base is not None:
        raise UserError(f"base is {job.base}, but {folder} holds a whole model, which has none; remove it")
    if (run / "metrics.jsonl").is_file():
        replaced["README.md"] = model_card(load(run), set(files), job.base).encode()
        files["README.md"] = len(replaced["README.md"])
    return Upload(folder, dict(sorted(files.items())), left_out, replaced)


def _with_base(file: Path, base: str | None) -> dict[str, bytes]:
    """The adapter's configuration with the base of the hub that was given, where the run's is a local folder."""
    config = json.loads(file.read_text(encoding="utf-8"))
    local = str(config.get("base_model_name_or_path"))
    if base is None:
        if Path(local).is_absolute() or Path(local).exists():
            raise UserError(
                f"the model is an adapter over the local folder {Path(local).name}, which nobody else has; name its "
                "base on the hub with --base ORGANISATION/NAME, or train with --export merged and push whole weights"
            )
        return {}
    return {ADAPTER: json.dumps(config | {"base_model_name_or_path": base}, indent=2).encode()}


def _upload(job: PushJob, upload: Upload) -> str:
    """Create the repository and send one commit; returns the address of the repository."""
    from huggingface_hub import CommitOperationAdd, HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError

    if get_token() is None:
        raise UserError("there is no token of the hub; log in with `hf auth login`, or set HF_TOKEN")
    api, repo = HfApi(), job.repo or ""
    operations = [CommitOperationAdd(name, upload.replaced.get(name, upload.folder / name)) for name in upload.files]
    try:
        address = _repository(api, job)
        api.create_commit(repo, operations, commit_message="Upload a model trained with tabular-rlhf")
    except HfHubHTTPError as error:
        reason = error.server_message or str(error).splitlines()[0]
        raise UserError(f"the hub refused the upload to {repo}: {reason}") from None
    except UserError:
        raise
    except Exception as error:  # of the HTTP library that huggingface_hub has at the moment, or of the disk
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(f"the upload to {repo} failed: {type(error).__name__}: {reason}") from error
    return f"uploaded to {address}"


def _repository(api: Any, job: PushJob) -> str:
    """Create the repository, or check that it may be written to; returns its address."""
    repo = job.repo or ""
    address = api.create_repo(repo, private=not job.public, exist_ok=True)
    others = [name for name in api.list_repo_files(repo) if name != ".gitattributes"]
    if others and not job.overwrite:
        raise UserError(
            f"{repo} has files already ({', '.join(others[:5])}{', ...' if len(others) > 5 else ''}); add --overwrite "
            "true to replace those of the same names, or name another repository"
        )
    return str(address)


def _size(count: int) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count} B"
