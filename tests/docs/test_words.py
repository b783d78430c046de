"""Retired names and words do not come back: identifiers by syntax, docstrings, comments, messages and pages by text."""

import ast
import re
import subprocess
from collections.abc import Iterator
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
    "uniforms",
    "HERE",
    "ABSENT",
}
"""Names of functions, classes and constants that were replaced (CONTRIBUTING.md, Glossary)."""

MODULES = {"own", "names", "plan", "complete", "judging", "judge"}
"""Names of files that were replaced."""

WORDS = {
    r"holes?": "environment tokens",
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
    r"beforehand": "before",
    r"thereof|whereof|wherein|whence|nought|shall": "plain English",
}
"""Pattern of a word or phrase -> what to say instead."""

SKIPPED = {"CHANGELOG.md", "tests/docs/test_words.py"}
"""Files that must name retired words."""

GLOSSARY = "CONTRIBUTING.md"
"""Its glossary names retired words in a column of its own, which is not searched."""


def tracked(*endings: str) -> list[str]:
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    return sorted(name for name in set(names) if name.endswith(endings) and (ROOT / name).is_file())


def bound_names(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Names that a module binds, with their line: variables, arguments, attributes, functions, classes, imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id, node.lineno
        elif isinstance(node, ast.arg):
            yield node.arg, node.lineno
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr, node.lineno
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            yield node.name, node.lineno
        elif isinstance(node, ast.alias):
            yield node.asname or node.name.split(".")[-1], node.lineno
        elif isinstance(node, ast.ExceptHandler) and node.name:
            yield node.name, node.lineno


def retired_identifiers(file: str) -> list[str]:
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    return [f"{file}:{line}: {name}" for name, line in bound_names(tree) if name in VARIABLES | NAMES]


def without_glossary(text: str) -> str:
    return re.sub(r"## Glossary.*?(?=\n## )", lambda part: "\n" * part[0].count("\n"), text, flags=re.DOTALL)


def retired_words(file: str) -> list[str]:
    text = (ROOT / file).read_text(encoding="utf-8")
    text = without_glossary(text) if file == GLOSSARY else text
    offences = []
    for pattern, instead in WORDS.items():
        words = pattern.replace(" ", r"[\s#]+")  # a phrase may be broken over two lines of a comment
        for match in re.finditer(rf"(?<![\w-])(?:{words})(?![\w-])", text, flags=re.IGNORECASE):
            line = text.count("\n", 0, match.start()) + 1
            offences.append(f"{file}:{line}: {' '.join(match[0].split())!r} (say: {instead})")
    return offences


ALLOWED: dict[str, int] = {
    "docs/layout.md": 4,
    "rlhf/report/charts.py": 3,
    "rlhf/report/report.py": 3,
    "rlhf/report/templates/report.html.jinja": 2,
    "rlhf/rollouts/stages.py": 1,
    "rlhf/trainers/ptx.py": 2,
    "rlhf/trainers/reward_model.py": 3,
    "rlhf/trainers/sft.py": 6,
    "rlhf/trainers/supervised.py": 6,
    "tabular/README.md": 1,
    "tabular/cli/options.py": 1,
    "tabular/core/distributions.py": 2,
    "tabular/deep/dqn.py": 2,
    "tabular/deep/networks.py": 4,
    "tabular/deep/trajectories.py": 1,
    "tabular/envs/table.py": 1,
    "tabular/experiments/algorithms.py": 2,
    "tabular/experiments/value_plots.py": 1,
    "tests/rlhf/report/test_report.py": 2,
    "tests/rlhf/rollouts/test_sampling.py": 1,
    "tests/rlhf/rollouts/test_stages.py": 1,
    "tests/rlhf/trainers/test_advantages.py": 1,
    "tests/rlhf/trainers/test_ptx.py": 2,
    "tests/rlhf/trainers/test_reward_modeling.py": 3,
    "tests/rlhf/trainers/test_sft.py": 9,
    "tests/tabular/cli/test_commands.py": 2,
    "tests/tabular/core/test_distributions.py": 2,
    "tests/tabular/deep/test_learners.py": 1,
    "tests/tabular/deep/test_networks.py": 2,
    "tests/tabular/deep/test_reinforce.py": 1,
    "tests/tabular/experiments/test_evaluation.py": 2,
    "tests/tabular/experiments/test_frames.py": 1,
    "tests/tabular/td/test_control.py": 1,
    "tests/tabular/td/test_prediction.py": 13,
}
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
