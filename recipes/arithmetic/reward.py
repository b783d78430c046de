"""Rewards of arithmetic: 1 for the right answer, else 0. The right answers are the dataset's column `answer`."""

import re


def first_line(prompts, completions, answer, **columns):
    """1 where the first line of the completion is the answer and nothing else; for prompts that are continued."""
    return [
        float(completion.strip().split("\n")[0].strip() == right)
        for completion, right in zip(completions, answer, strict=True)
    ]


def last_number(prompts, completions, answer, **columns):
    """1 where the last whole number in the completion is the answer; for chat models, which answer in sentences."""
    return [
        float(re.findall(r"\d+", completion)[-1:] == [right])
        for completion, right in zip(completions, answer, strict=True)
    ]
