"""SFT, compare, reward model, PPO, compare again: the round of docs/compare.md with a scripted person, in minutes.

A small language model learns sentences such as "the red house is warm and dusty ." The scripted person prefers the
answer with more pleasant words, clearly so where it has two more, and errs in one of ten choices. Every stage is a
command as a user types it; the person answers over HTTP, as the page does.
"""

import argparse
import itertools
import json
import random
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

from rlhf.cli.main import main as rlhf
from rlhf.people.store import Store
from rlhf.people.summary import summarise
from rlhf.people.win_rates import OriginResult

PLEASANT = "warm bright quiet lovely clean friendly cosy fresh".split()  # noqa: SIM905
UNPLEASANT = "cold dark noisy ugly dirty hostile damp stale".split()  # noqa: SIM905
COLOURS = "red blue green white black grey brown yellow pink golden silver purple orange pale little old".split()  # noqa: SIM905
THINGS = "house garden kitchen street tower bridge cellar station school boat train market room hall shop tent".split()  # noqa: SIM905
THINGS += "barn cabin office church theatre library hotel museum castle".split()  # noqa: SIM905
ERRORS = 0.1
"""Share of choices in which the scripted person errs."""

OPTIONS = {
    "sft": "--scratch.model_type llama --scratch.vocab_size 400 --scratch.hidden_size 64 --training.lr 3e-3",
    "reward": "--ties half --clear_margin 1 --training.lr 3e-3 --training.epochs 8 --training.batch_size 16",
    "ppo": "--ppo.rollout_batch_size 32 --ppo.minibatch_size 16 --ppo.microbatch_size 16 --ppo.lr 5e-4 "
    "--ppo.kl_coef 0.1 --generation.max_new_tokens 12 --eval.every 0",
}
"""Of each stage: what differs from the defaults, so that the round takes little time."""
SHARED = "--checkpoint.every 0 --trackers []"


def write_data(folder: Path, seed: int) -> None:
    """Sentences for SFT, prompts for PPO, and held-out prompts for the last comparison."""
    rng = random.Random(seed)
    prompts = [f"the {colour} {thing} is" for colour, thing in itertools.product(COLOURS, THINGS)]
    rng.shuffle(prompts)
    words = PLEASANT + UNPLEASANT
    texts = [
        f"{rng.choice(prompts)} {rng.choice(words)} , {rng.choice(words)} and {rng.choice(words)} ."
        for _ in range(3000)
    ]
    rows = {
        "sentences": [{"text": text} for text in texts],
        "prompts": [{"prompt": prompt} for prompt in prompts[:300]],
        "held_out": [{"prompt": prompt} for prompt in prompts[300:]],
    }
    folder.mkdir(parents=True)
    for name, content in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in content))


def pleasantness(text: str) -> int:
    """Pleasant words minus unpleasant ones."""
    words = re.findall(r"\w+", text)
    return sum((word in PLEASANT) - (word in UNPLEASANT) for word in words)


def compare(source: str, output: Path, seed: int, *options: str) -> None:
    """`rlhf compare` with the scripted person, until no pair is left."""
    command = [
        sys.executable,
        "-m",
        "rlhf.cli.main",
        "compare",
        source,
        "--output",
        str(output),
        "--annotator",
        "script",
    ]
    server = subprocess.Popen([*command, "--seed", str(seed), *options], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    try:
        address = next(match for line in server.stdout if (match := re.search(r"(http://\S+)/\?token=(\S+)", line)))
        answer_all(address[1], address[2], random.Random(seed))
    finally:
        server.send_signal(signal.SIGINT)
        server.communicate()


def answer_all(address: str, token: str, rng: random.Random) -> None:
    """Answer every question as the scripted person."""

    def call(path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(urllib.request.Request(f"{address}/api/{path}", data, headers)) as response:
            return json.load(response)

    state = call("question")
    while state["question"] is not None or state["more_to_come"]:
        question = state["question"]
        if question is None:
            state = call("question")
            continue
        difference = pleasantness(question["left"]) - pleasantness(question["right"])
        if rng.random() < ERRORS:
            difference = -difference
        choice = "left" if difference > 0 else "right" if difference < 0 else "tie"
        state = call(
            "answer", {"question": question["id"], "choice": choice, "clearly": abs(difference) >= 2, "seconds": 1}
        )


def run(folder: Path, seed: int, pairs: int, episodes: int) -> OriginResult:
    """All stages in a new folder.

    Returns:
        How the trained model fares against its start, on held-out prompts.
    """
    data = folder / "data"
    write_data(data, seed)
    sft, reward, ppo = (str(folder / name) for name in ("sft", "reward", "ppo"))
    sentences, prompts, held_out = (str(data / f"{name}.jsonl") for name in ("sentences", "prompts", "held_out"))
    preferences, blind = folder / "preferences.jsonl", folder / "blind.jsonl"

    def stage(name: str, *options: str) -> None:
        rlhf([name, *options, *OPTIONS[name].split(), *SHARED.split(), "--seed", str(seed)])

    stage("sft", "--data.path", sentences, "--output", sft)
    options = ["--data.path", prompts, "--generation.max_new_tokens", "12", "--pairs", str(pairs)]
    compare(sft, preferences, seed, *options)
    stage("reward", "--model.path", sft, "--data.path", str(preferences), "--output", reward)
    data_and_reward = ["--data.path", prompts, "--data.eval_path", held_out, "--reward.model", reward]
    stage("ppo", "--model.path", sft, *data_and_reward, "--output", ppo, "--ppo.total_episodes", str(episodes))
    compare(ppo, blind, seed)
    rlhf(["compare", "--summary", str(blind)])
    return next(result for result in summarise(Store(blind)).origins if result.origin == ppo)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/compare"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pairs", type=int, default=300)
    parser.add_argument("--episodes", type=int, default=1920)
    arguments = parser.parse_args()
    result = run(arguments.output, arguments.seed, arguments.pairs, arguments.episodes)
    rate = result.win_rate
    print(f"win rate {rate.value:.2f}, 95% interval {rate.low:.2f} to {rate.high:.2f}, {result.pairs} pairs")


if __name__ == "__main__":
    main()
