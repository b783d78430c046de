"""Run folders with rows of our own."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml


@pytest.fixture
def make_run(tmp_path) -> Callable[..., Path]:
    """`make_run("a", steps=30, lr=1e-5)`: a PPO run folder below `tmp_path / "runs"` with evaluations and samples."""

    def make(name: str, steps: int = 30, texts: list[str] | None = None, **ppo: Any) -> Path:
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        config = {"output": str(folder), "ppo": {"total_episodes": steps * 8, "rollout_batch_size": 8, **ppo}}
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        rows = [
            {"step": s, "objective/score": s / steps, "objective/kl": s / 10, "time/step": 2.0}
            for s in range(1, steps + 1)
        ]
        evals = [
            {"step": s, "score": s / steps, "score_low": s / steps - 0.1, "score_high": s / steps + 0.1, "kl": s / 10}
            for s in (0, steps)
        ]
        samples = [
            {
                "step": s, "index": i, "prompt": f"prompt {i}", "response": text, "tokens": text.split(" ")[:50],
                "scores": {"score": i + s / steps}, "truncated": False, "token_kl": [0.7] * len(text.split(" ")[:50]),
                "token_values": [-1.0] * len(text.split(" ")[:50]),
            }
            for s in (0, steps)
            for i, text in enumerate(texts or [f"text {i} at {s}" for i in range(12)])
        ]  # fmt: skip
        for file, content in (("metrics", rows), ("eval", evals), ("samples", samples)):
            (folder / f"{file}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))
        return folder

    return make
