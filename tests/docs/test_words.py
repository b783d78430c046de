"""Retired names and words do not come back: identifiers by syntax, docstrings, comments, messages and pages by text."""

import ast
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]

VARIABLES = {"found", "said", "asked", "known", "given", "mine", "kept", "heard"}
"""Names of variables, arguments and attributes that say nothing about what they hold."""

NAMES = {
    "room_of",
    "check_room",
    "own_loop",
    "reach",
    "unread",
    "spread",
    "places_of",
    "shaped",
    "cut_values",
    "lay_over",
    "fits_over",
    "check_unread",
    "learnt",
    "Learnt",
    "forms",
    "semicolons",
    "Unheard",
    "NEVER",
    "PATIENCE",
    "FOREVER",
    "together",
    "Turn",
    "Count",
    "Anchor",
    "Extras",
    "hand_of",
    "judges",
    "judging",
    "_judged_otherwise",
    "HERE",
    "ABSENT",
}
"""Names of functions, classes and constants that were replaced (CONTRIBUTING.md, Glossary)."""

MODULES = {"own", "names", "plan", "complete", "judging", "judge"}
"""Names of files that were replaced."""

WORDS = {
    r"prices? (?:of|on)": "coefficient, penalty",
    r"KL's price": "KL coefficient",
    r"(?:of )?one's own": "your own, custom, separate",
    r"learnt": "learned, trained on",
    r"judged": "evaluated, scored",
    r"judging": "evaluation, scoring",
    r"judges": "scorers, evaluates",
    r"to judge": "to evaluate",
    r"unheard": "broken pipe",
    r"(?:goes|go|went) on": "continues",
    r"(?:is|are|was|were) told": "gets, is passed",
    r"the very": "the same, exactly the",
    r"dealt": "split",
    r"laid over": "attached to",
    r"lays? over": "attach to",
    r"never be read": "unused",
    r"whole road": "all stages",
    r"paid for ever": "collects reward forever",
    r"thereof|whereof|wherein|whence|nought|shall": "plain English",
}
"""Pattern of a word or phrase -> what to say instead."""

WORDS_OF_THE_TRAINER = {r"holes?": "environment tokens"}
"""The same, outside `tabular`: FrozenLake has holes."""

SKIPPED = {"CHANGELOG.md", "tests/docs/test_words.py"}
"""Files that must name retired words."""

GLOSSARY = "CONTRIBUTING.md"
"""Its glossary names retired words in a column of its own, which is not searched."""


def tracked(*endings: str) -> list[str]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    return sorted(name for name in set(names) if name.endswith(endings) and (ROOT / name).is_file())


def retired_identifiers(file: str) -> list[str]:
    """Retired names of variables, arguments and attributes, and of functions, classes and imports."""
    offences = []
    for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
        name = ""
        retired = VARIABLES
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            name = node.id
        elif isinstance(node, ast.arg):
            name = node.arg
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            name = node.attr
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            name = node.name
            retired = NAMES
        elif isinstance(node, ast.alias):
            name = node.asname or node.name.split(".")[-1]
            retired = NAMES
        if name in retired or (name.isupper() and name in NAMES):
            offences.append(f"{file}:{getattr(node, 'lineno', 0)}: {name}")
    return offences


def without_glossary(text: str) -> str:
    return re.sub(r"## Glossary.*?(?=\n## )", lambda part: "\n" * part[0].count("\n"), text, flags=re.DOTALL)


def retired_words(file: str) -> list[str]:
    text = (ROOT / file).read_text(encoding="utf-8")
    text = without_glossary(text) if file == GLOSSARY else text
    offences = []
    textbook = file.startswith(("tabular/", "tests/tabular/", "docs/layout.md"))
    for pattern, instead in (WORDS if textbook else WORDS | WORDS_OF_THE_TRAINER).items():
        words = pattern.replace(" ", r"[\s#]+")  # a phrase may be broken over two lines of a comment
        for match in re.finditer(rf"(?<![\w-])(?:{words})(?![\w-])", text, flags=re.IGNORECASE):
            line = text.count("\n", 0, match.start()) + 1
            offences.append(f"{file}:{line}: {' '.join(match[0].split())!r} (say: {instead})")
    return offences


ALLOWED: dict[str, int] = {}
"""Offences of a file that are still to be removed; numbers only get smaller."""

PYTHON = [file for file in tracked(".py") if file not in SKIPPED]
TEXT = [file for file in tracked(".py", ".md", ".yaml", ".toml", ".jinja", "Makefile", ".cff") if file not in SKIPPED]


def test_no_retired_names_and_words():
    offences = {file: [] for file in TEXT}
    for file in PYTHON:
        offences[file] += retired_identifiers(file)
    for file in TEXT:
        offences[file] += retired_words(file)
    new = [line for file, lines in offences.items() if len(lines) > ALLOWED.get(file, 0) for line in lines]
    assert not new, "\n".join(new)


def test_no_retired_module_names():
    packages = [Path(file) for file in PYTHON if file.startswith(("rlhf/", "tabular/"))]
    assert not [str(file) for file in packages if file.stem in MODULES]


def test_retired_identifiers_and_words_are_noticed(tmp_path, monkeypatch):
    (tmp_path / "page.py").write_text(
        '"""What is learnt\nof one\'s\nown."""\ndef reach(given):\n    for kept in given:\n        self.found = kept\n'
    )
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    assert [line.split(": ")[1] for line in retired_identifiers("page.py")] == ["reach", "given", "kept", "found"]
    assert len(retired_words("page.py")) == 2
