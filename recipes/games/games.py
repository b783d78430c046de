"""Two environments: a number to be guessed, and a calculator that may be called before the answer."""

import re


class Guess:
    """Guess a digit from 1 to 9; the reply is `higher` or `lower`. Right earns 1, less 0.1 for each earlier guess."""

    def reset(self, prompt: str, secret: int) -> str:
        self.secret, self.guesses = secret, 0
        return prompt

    def step(self, text: str) -> tuple[str | None, float]:
        self.guesses += 1
        guess = text.strip()
        if not re.fullmatch("[1-9]", guess):
            return "a digit\n", -0.2
        if int(guess) == self.secret:
            return None, 1 - 0.1 * (self.guesses - 1)
        return ("higher\n" if int(guess) < self.secret else "lower\n"), 0.0


class Calculator:
    """Answer a sum. The reply to `calc 47+25` is `72` and costs 0.05; any other text is the answer; right earns 1."""

    def reset(self, prompt: str, answer: int) -> str:
        self.answer = answer
        return prompt

    def step(self, text: str) -> tuple[str | None, float]:
        call = re.fullmatch(r"\s*calc (\d+)\+(\d+)\s*", text)
        if call:
            return f"{int(call[1]) + int(call[2])}\n", -0.05
        return None, float(text.strip() == str(self.answer))
