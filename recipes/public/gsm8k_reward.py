"""The reward of GSM8K: 1 where the number after the last `####` equals the answer, else 0."""

import re

NUMBER = re.compile(r"####\s*\$?\s*(-?[\d,]*\.?\d+)")


def exact_answer(prompts, completions, answer, **columns):
    """Numbers are compared as numbers: `1,000.0` equals `1000`. A completion without `####` scores 0."""
    scores = []
    for completion, right in zip(completions, answer, strict=True):
        numbers = NUMBER.findall(completion)
        scores.append(float(bool(numbers) and float(numbers[-1].replace(",", "")) == float(right)))
    return scores
