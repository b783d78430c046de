"""The manifest of a checkpoint: size and hash of each file, so that damage is seen before anything is loaded."""

import hashlib
import json
from pathlib import Path

from rlhf.run.files import write_text

MANIFEST = "manifest.json"


def write_manifest(folder: Path) -> None:
    """Write the sizes and SHA-256 hashes of a folder's files beside them."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name != MANIFEST)
    entries = {path.name: {"bytes": path.stat().st_size, "sha256": _hash(path)} for path in files}
    write_text(folder / MANIFEST, json.dumps(entries, indent=2) + "\n")


def find_damage(folder: Path) -> str | None:
    """What differs between a folder and its manifest, as a clause such as `optimizer.pt is missing`; None for nothing.

    A folder without a manifest, from a version that wrote none, cannot be checked.
    """
    if not (folder / MANIFEST).exists():
        return None
    try:
        entries = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        for name, entry in entries.items():
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != entry["bytes"]:
                return f"{name} has {path.stat().st_size} bytes instead of {entry['bytes']}"
            if _hash(path) != entry["sha256"]:
                return f"{name} is not what was written (its SHA-256 differs from the manifest's)"
    except (ValueError, TypeError, AttributeError, KeyError):
        return f"{MANIFEST} is damaged"
    except OSError as error:
        return f"it cannot be read: {error}"
    return None


def _hash(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
