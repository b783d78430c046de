"""A run folder as one HTML page: what changed, whether training was healthy, and what the model writes now.

`load` reads the folder into a `Run`; pure functions compute warnings, samples and charts from it; the template
`templates/report.html.jinja` has the page's words and layout. The same folder gives the same bytes. The page loads
nothing else, and works without JavaScript.
"""

import json
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np

from rlhf.errors import UserError
from rlhf.report.charts import LARGE, curve, score_against_kl, stack
from rlhf.report.engine import template_engine
from rlhf.report.health import compare, health_warnings
from rlhf.report.metric_tables import evaluated_measures, metric_table
from rlhf.report.numbers import NAN, Row, duration, finite, mean, number, parameters, percent, signed, smoothing_window
from rlhf.report.reward_quality import reward_quality
from rlhf.report.run_files import Run, load, setting
from rlhf.report.samples import compare_samples
from rlhf.report.score_histogram import score_histogram
from rlhf.run.files import write_bytes

GENERATOR = b'<meta name="generator" content="rlhf report">'
"""The mark of a page that this module wrote."""


def write_report(run_dir: Path, output: Path | None = None) -> Path:
    """Write the report of `run_dir` to `output` (default: `run_dir/report.html`) and return where it is.

    The file is replaced atomically: a reader never sees half of it, and a failure leaves the old one.

    Raises:
        UserError: `run_dir` does not exist, has no metrics, its config or environment cannot be read, or `output` is
            a file that is no report.
    """
    if output is not None and output.exists() and not is_report(output):
        raise UserError(f"{output} exists and is no report; name another file with --output")
    page = render(load(run_dir))
    output = output or run_dir / "report.html"
    output.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(output, page.encode("utf-8", errors="replace"))  # a sampled text may hold lone surrogates
    return output


def is_report(path: Path) -> bool:
    """Whether a path is a page of ours, which a new one may replace."""
    return path.is_file() and GENERATOR in path.read_bytes()[:1000]


def render(run: Run) -> str:
    """The page as HTML. The template engine escapes everything that comes from the folder."""
    engine = template_engine()
    engine.globals |= {f.__name__: f for f in (number, signed, percent, duration, parameters)}
    engine.tests["finite"] = lambda value: math.isfinite(finite(value))
    outcome = compare(run.rows, run.evals)
    seconds, memory = run.metric("time/step"), run.metric("memory/peak_mb")
    batch = setting(run.config, "ppo.rollout_batch_size")
    samples, colourings = compare_samples(run, outcome.after["step"])
    return engine.get_template("report.html.jinja").render(
        run=run,
        steps=run.rows[-1]["step"],
        model=setting(run.config, "model.path"),
        episodes=batch * run.rows[-1]["step"] if isinstance(batch, int) else None,
        outcome=outcome,
        warnings=health_warnings(run.rows, run.evals),
        seconds=float(np.nansum(seconds)),
        seconds_per_step=mean(seconds),
        tokens_per_second=mean(run.metric("throughput/response_tokens_per_s")),
        peak_memory=max(memory[np.isfinite(memory)], default=NAN),
        is_ppo=any(name.startswith("objective/") for row in run.rows for name in row),
        window=smoothing_window(len(run.rows)),
        curve=partial(curve, run.rows, run.evals),
        stack=partial(stack, run.rows, run.evals),
        frontier=score_against_kl(run.rows, run.evals, (outcome.before["step"], outcome.after["step"])),
        LARGE=LARGE,
        evaluated_measures=evaluated_measures(run),
        metrics=metric_table(run),
        samples=samples,
        colourings=colourings,
        histogram=score_histogram(samples),
        quality=reward_quality(run.reward_quality),
        config=config_sections(run.config),
        versions=_flatten(run.environment.get("versions") or {}, ""),
        environment=_flatten({k: v for k, v in run.environment.items() if k not in ("versions", "command")}, ""),
    )


def config_sections(config: Row) -> list[tuple[str, list[tuple[str, str]]]]:
    """The config as (section, [(dotted key, value)]), with the keys outside of sections first, as section `run`."""
    plain = {key: value for key, value in config.items() if not isinstance(value, Mapping)}
    nested = {key: value for key, value in config.items() if isinstance(value, Mapping)}
    blocks = {"run": plain, **nested} if plain else nested
    return [(str(name), list(_flatten(block, ""))) for name, block in blocks.items()]


def _flatten(block: Row, prefix: str) -> list[tuple[str, str]]:
    flat = []
    for key, value in block.items():
        if isinstance(value, Mapping) and value:
            flat += _flatten(value, f"{prefix}{key}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
            flat.append((f"{prefix}{key}", text))
    return flat
