"""The settings of `rlhf compare`, where people compare answers."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rlhf.config.checks import check
from rlhf.config.parsing import parse, read_yaml, split_words, to_options
from rlhf.config.run_settings import is_ppo_run
from rlhf.config.shared import DataConfig, GenerationConfig
from rlhf.errors import UserError

PAIR_FILES = (".json", ".jsonl", ".csv", ".tsv", ".parquet")
"""Endings of files of pairs; every other source is a model."""


@dataclass(frozen=True)
class CompareJob:
    """Compare pairs of answers in a local page, blind; the preferences train a reward model.

    `rlhf compare SOURCE...`: a PPO run (its start against its trained model), two models, one model (two of its
    answers), or a file of pairs. Without a source, an earlier comparison continues.
    """

    sources: list[str] = field(default_factory=list)
    """What to compare: a PPO run, one or two models (run folder, model folder or hub id), or a file with the columns
    `prompt`, `a`, `b` and perhaps `origin_a`, `origin_b`."""
    output: str = "preferences.jsonl"
    """File of the preferences, written from the database beside it, which has `.db` at the end of its name."""
    annotator: str | None = None
    """Name of the person who compares; several people share an output."""
    summary: str | None = None
    """Print the summary of these preferences instead of opening the page."""
    page: str | None = None
    """With summary: HTML file to write it to as a page."""
    seed: int = 0
    """Seed of sampling, of the order, and of the sides on which answers are shown."""
    pairs: int = 200
    """Prompts that models answer; a file of pairs is used whole."""
    temperatures: list[float] | None = None
    """Two temperatures for the answers of one model; null: generation.temperature for both."""
    order: Literal["random", "uncertain"] = "random"
    """Which pairs come first: in random order, or those whose scores by reward_model differ least."""
    reward_model: str | None = None
    """Reward model that scores the answers, for order uncertain and for the summary."""
    repeats: float = 0.1
    """Share of the pairs that each person sees a second time, with sides swapped."""
    overlap: float = 0.1
    """Share of the pairs that two people see."""
    host: str = "127.0.0.1"
    """Address to listen on; keep it and use an SSH tunnel from other machines."""
    port: int | None = None
    """Port to listen on; null: the first free one from 8765 on."""
    data: DataConfig = field(default_factory=DataConfig)
    generation: GenerationConfig = field(default_factory=GenerationConfig)

    def __post_init__(self):
        check(0 <= self.seed < 2**32, "seed", self.seed, "at least 0 and below 2**32")
        for name in ("repeats", "overlap"):
            check(0 <= getattr(self, name) <= 1, name, getattr(self, name), "between 0 and 1")
        check(self.pairs > 0, "pairs", self.pairs, "positive")
        check(self.port is None or 0 < self.port < 2**16, "port", self.port, "null, or at least 1 and below 65536")
        check(len(self.sources) <= 2, "sources", self.sources, "at most two models")
        if self.summary is None:
            name = self.annotator
            check(name is None or bool(name.strip()), "annotator", name, "a name")
            if name is None:
                raise UserError("annotator is not set; give the name of the person who compares with --annotator NAME")
        self._check_unused()

    def _check_unused(self) -> None:
        """Reject settings without effect beside the others."""
        temperatures, order = self.temperatures, self.order
        if self.page is not None and self.summary is None:
            raise UserError("page is set, but it has no effect without summary; add --summary FILE, or remove it")
        if order == "uncertain" and self.reward_model is None:
            raise UserError("order is uncertain, but there is no reward model; name one with --reward_model FOLDER")
        if len(self.sources) == 2 and any(map(is_pair_file, self.sources)):
            raise UserError("a file of pairs is compared alone; put the pairs of several files into one")
        if temperatures is not None:
            pair = len(temperatures) == 2 and min(temperatures) >= 0 and temperatures[0] != temperatures[1]
            check(pair, "temperatures", temperatures, "two different numbers, at least 0")
            if len(self.sources) != 1 or is_pair_file(self.sources[0]):
                raise UserError("temperatures is set, but it needs exactly one model as the source")


def is_pair_file(source: str) -> bool:
    """Whether a source is a file of pairs."""
    return Path(source).suffix in PAIR_FILES


def ppo_run_of(sources: Sequence[str]) -> str | None:
    """The first source that is the folder of a PPO run; None where there is none."""
    return next((source for source in sources if is_ppo_run(Path(source).expanduser())), None)


def read_config(run: str) -> dict[str, Any]:
    """The settings of a run folder, nested."""
    return read_yaml(Path(run).expanduser() / "config.yaml")


def parse_compare(argv: Sequence[str]) -> CompareJob:
    """The job of a command line `rlhf compare SOURCE... [options]`.

    The first PPO run among the sources gives prompts and sampling, which options override. With `--data.path`, none of
    the run's settings of `data` are used.

    Raises:
        UserError: a setting is wrong.
    """
    sources, options = split_words(CompareJob, argv)
    of_run: list[str] = []
    run = ppo_run_of(sources)
    if run is not None:
        settings = read_config(run)
        own_data = any(option.startswith("--data.path=") for option in options)
        names = ("generation",) if own_data else ("generation", "data")
        of_run = to_options(CompareJob, {name: settings[name] for name in names})
    words = to_options(CompareJob, {"sources": sources}) if sources else []
    return parse(CompareJob, [*of_run, *options, *words], "rlhf compare")
