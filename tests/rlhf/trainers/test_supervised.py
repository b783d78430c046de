"""The supervised loop."""

import pytest
import torch
from torch import nn

from rlhf.config.jobs import SFTJob
from rlhf.config.shared import CheckpointConfig, DataConfig, ModelConfig
from rlhf.config.training import TrainingConfig
from rlhf.errors import UserError
from rlhf.run.distributed import open_accelerator
from rlhf.run.folder import RunFolder
from rlhf.trainers.supervised import check_batches, fit, total_steps


@pytest.mark.parametrize(
    ("epochs", "rows", "steps"), [(1.0, 48, 6), (1.0, 50, 6), (2.5, 48, 15), (0.01, 48, 1), (0.5, 8, 1)]
)
def test_total_steps(epochs, rows, steps):
    assert total_steps(TrainingConfig(epochs=epochs, batch_size=8), rows) == steps


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 9}, "x holds 8 examples to train on, fewer than training.batch_size = 9; lower it"),
        ({"batch_size": 4, "warmup_steps": 2}, "training.warmup_steps is 2, but the whole run has 2 steps; lower it"),
        ({"batch_size": 3}, "training.batch_size is 3, which 2 processes cannot share evenly; use a multiple of 2"),
    ],
)
def test_batches_that_do_not_fit_are_rejected(changes, message):
    with pytest.raises(UserError, match=message):
        check_batches(TrainingConfig(**changes), rows=8, processes=2, path="x")


def test_fit_minimises_a_new_task(tmp_path):
    """A task needs nothing of language models: here a weighted mean of squares, whose minimum is the mean."""
    accelerator = open_accelerator(str(tmp_path), None, [], 0)
    training = TrainingConfig(epochs=150.0, batch_size=4, microbatch_size=2, lr=0.2, lr_schedule="linear")
    job = SFTJob(
        output=str(tmp_path / "run"),
        trackers=[],
        model=ModelConfig(path="unused"),
        data=DataConfig(path="unused"),
        training=training,
        checkpoint=CheckpointConfig(every=0),
    )
    model = Constant()
    run = RunFolder(job.output, None)
    assert fit(WeightedSquares(), model, job=job, run=run, accelerator=accelerator)
    # Weighted mean of 1, 2, 3, 6 by weights 1, 1, 1, 3.
    assert model.value.item() == pytest.approx(4.0, abs=0.02)
    last = run.read("metrics")[-1]
    assert last["loss"] == pytest.approx((9 + 4 + 1 + 3 * 4) / 6, abs=0.02)
    assert last["rows"] == pytest.approx(4 / 6)
    assert run.read("eval")[-1]["value"] == pytest.approx(model.value.item())


class Constant(nn.Module):
    """One weight."""

    def __init__(self):
        super().__init__()
        self.value = nn.Parameter(torch.zeros(()))

    def forward(self, targets):
        return (self.value - targets).square()


class WeightedSquares:
    """Rows are (target, weight)."""

    title = "squares"
    rows = ((1.0, 1), (2.0, 1), (3.0, 1), (6.0, 3))

    def length(self, row):
        return 1

    def weight(self, row):
        return row[1]

    def loss(self, model, rows):
        targets, weights = torch.tensor(rows).unbind(1)
        return (weights * model(targets)).sum(), {"rows": torch.tensor(float(len(rows)))}

    def evaluate(self, model):
        return {"value": model.value.item()}
