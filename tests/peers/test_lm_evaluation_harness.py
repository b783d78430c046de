"""lm-evaluation-harness 0.4.13: log-likelihoods of responses under the `model/` that a PPO run exports."""

import json
import math

import pytest
import yaml

from rlhf import PPOTrainer, make_rollout

lm_eval = pytest.importorskip("lm_eval")
from lm_eval.models.huggingface import HFLM  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

pytestmark = pytest.mark.slow


@pytest.fixture
def evaluate(tmp_path, monkeypatch):
    """`evaluate(model, rows)`: the harness's results on a local task that scores each row's response."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))

    def evaluated(model: dict[str, str], rows: list[dict[str, str]]) -> tuple[list[float], float]:
        tasks = tmp_path / "tasks"
        tasks.mkdir()
        data = tmp_path / "responses.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        task = {
            "task": "responses",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(data)}},
            "test_split": "test",
            "output_type": "loglikelihood",
            "doc_to_text": "{{prompt}}",
            "doc_to_target": " {{response}}",
            "metric_list": [{"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False}],
        }
        (tasks / "responses.yaml").write_text(yaml.safe_dump(task))
        results = lm_eval.simple_evaluate(
            model=HFLM(**model, device="cpu", dtype="float32", batch_size=3),
            tasks=["responses"],
            task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
            bootstrap_iters=0,
            log_samples=True,
        )
        samples = sorted(results["samples"]["responses"], key=lambda sample: sample["doc_id"])
        likelihoods = [float(sample["filtered_resps"][0][0]) for sample in samples]
        return likelihoods, float(results["results"]["responses"]["perplexity,none"])

    return evaluated


@pytest.mark.parametrize("rank", [0, 2], ids=["all weights", "adapters"])
def test_log_likelihoods_of_the_exported_model_are_those_of_the_trained_policy(job, change, evaluate, rank):
    """To 1e-4 nats a response, after steps that moved the policy by far more than that."""
    if rank:
        job = change(job, model={"lora": change(job.model, lora={"rank": rank}).lora})
    trainer = PPOTrainer(change(job, ppo={"lr": 1e-2}, data={"eval_fraction": 0.0}))  # the last step is exported
    trainer.train()
    rollout = trainer.generate(trainer.next_prompts())
    rows = [
        {"prompt": prompt, "response": text}
        for prompt, text in zip(rollout.prompts.prompts, rollout.completions, strict=True)
        if text
    ]
    assert len(rows) > 4
    ids = [trainer.tokenizer(row["response"], add_special_tokens=False).input_ids for row in rows]
    ours = make_rollout(trainer, [row["prompt"] for row in rows], ids)
    expected = ours.old_logprobs.where(ours.response_mask, 0).sum(-1).tolist()
    start = ours.ref_logprobs.where(ours.response_mask, 0).sum(-1).tolist()
    folder = str(trainer.run.path / "model")
    model = {"pretrained": str(job.model.path), "peft": folder} if rank else {"pretrained": folder}
    likelihoods, perplexity = evaluate(model, rows)
    assert likelihoods == pytest.approx(expected, abs=1e-4)
    assert likelihoods != pytest.approx(start, abs=1e-2)
    assert perplexity == pytest.approx(math.exp(-sum(expected) / len(expected)), rel=1e-4)
