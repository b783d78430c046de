"""`rlhf chat`: a conversation with a model in the terminal, or with two of them side by side."""

import sys
from pathlib import Path
from typing import Any

from torch import Tensor

from rlhf.cli.generate import Generator
from rlhf.config.commands import ChatJob
from rlhf.config.parsing import read_yaml
from rlhf.data.encoding import encode_prompts, render_chat
from rlhf.errors import UserError

HELP = """/reset        forget the conversation
/system TEXT  begin anew with this system message; without a text, with none
/help         this list
/quit         end; so do Ctrl-D, and Ctrl-C where no answer is being written
Ctrl-C        ends an answer that is being written"""


def chat(job: ChatJob) -> None:
    """Answer each line of standard input until its end.

    Raises:
        UserError: a model cannot be loaded, or there is none to put beside it.
    """
    assert job.model is not None
    paths = {"": job.model}
    if job.beside or job.other is not None:
        paths = {"start": job.other or start_of_run(job.model), "trained": job.model}
        if job.other is not None:
            paths = {job.model: job.model, job.other: job.other}
    speakers = [Speaker(label, Generator(path, job), job.system) for label, path in paths.items()]
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        print("/help lists the commands; Ctrl-D ends")
    while (line := _read_line("> " if is_terminal else "")) is not None:
        if line.startswith("/"):
            if not _obey(line, speakers):
                return
        elif line.strip():
            for speaker in speakers:
                speaker.answer(line.strip())


def start_of_run(model: str) -> str:
    """The model that a run started from.

    Raises:
        UserError: the path is no run folder, or the run began with random weights.
    """
    config = Path(model).expanduser() / "config.yaml"
    if not config.is_file():
        raise UserError(f"{model} is no run folder, so nothing says what it started from; name a model with --other")
    start = (read_yaml(config).get("model") or {}).get("path")
    if start is None:
        raise UserError(f"{model} started from random weights; name another model with --other")
    return start


class Speaker:
    """A model and its side of the conversation."""

    def __init__(self, label: str, generator: Generator, system: str | None):
        """With the label of its answers; a system message needs a chat template.

        Raises:
            UserError: the template does not work.
        """
        self.label, self.generator = label, generator
        self.has_template = bool(generator.tokenizer.chat_template)
        if self.has_template:
            render_chat(generator.tokenizer, [{"role": "user", "content": "hello"}], True)
        else:
            print(f"{generator.name} has no chat template: each line is a prompt of its own, which it continues")
        self.messages: list[dict[str, str]] = []
        self.turns = 0
        self.begin(system)

    def begin(self, system: str | None) -> None:
        """Begin a conversation anew."""
        if system is not None and not self.has_template:
            raise UserError(f"{self.generator.name} has no chat template, so it takes no system message")
        self.system = [] if system is None else [{"role": "system", "content": system}]
        self.messages = []

    def answer(self, line: str) -> None:
        """Print the answer to a line while it is written, and remember both."""
        self.turns += 1
        self.messages.append({"role": "user", "content": line})
        self._forget_what_does_not_fit()
        prompt: Any = [*self.system, *self.messages] if self.has_template else line
        text = StreamedText(self.generator)
        if self.label:
            print(f"{self.label}: ", end="")
        try:
            [(_, response)] = self.generator.respond([prompt], self.turns, on_token=text.add)
        except KeyboardInterrupt:
            response = text.shown
            print(" ...", end="")
        except UserError as error:  # a line that alone exceeds the context length is no reason to end
            print(f"error: {error}")
            self.messages.pop()
            return
        text.finish(response)
        self.messages.append({"role": "assistant", "content": response})

    def _forget_what_does_not_fit(self) -> None:
        """Drop the oldest turns that leave no room for an answer in the context."""
        limit = self.generator.context_length
        if not self.has_template or limit is None:
            return
        room = min(self.generator.default_new_tokens, limit // 2)
        forgotten = 0
        while len(self.messages) > 1:
            (ids,) = encode_prompts(self.generator.tokenizer, [[*self.system, *self.messages]])
            if len(ids) + room <= limit:
                break
            del self.messages[:2]
            forgotten += 2
        if forgotten:
            print(f"(the oldest {forgotten} messages no longer fit into {limit} tokens and were left out)")


class StreamedText:
    """The text of an answer, printed as its tokens come."""

    def __init__(self, generator: Generator):
        self._tokenizer = generator.tokenizer
        self._stops = generator.sampler.stop_strings.strings if generator.sampler.stop_strings else ()
        self._ids: list[int] = []
        self.shown = ""

    def add(self, token: Tensor) -> None:
        """Print what is certain: no half of a character, and no beginning of a stop string."""
        self._ids += token.tolist()
        text = self._tokenizer.decode(self._ids, skip_special_tokens=True)
        certain = text.rstrip("\ufffd")
        for stop in self._stops:
            certain = certain.split(stop)[0]
            overlap = next((n for n in range(len(stop) - 1, 0, -1) if certain.endswith(stop[:n])), 0)
            certain = certain[: len(certain) - overlap]
        self._show(certain)

    def finish(self, text: str) -> None:
        """Print what is left of the whole answer, and a line break."""
        self._show(text)
        print(flush=True)

    def _show(self, text: str) -> None:
        if text.startswith(self.shown) and len(text) > len(self.shown):
            print(printable(text[len(self.shown) :]), end="", flush=True)
            self.shown = text


def printable(text: str) -> str:
    """Text without the control characters by which it could move the cursor or change the terminal."""
    return "".join(c if c in "\n\t" or not (ord(c) < 32 or 127 <= ord(c) < 160) else "\ufffd" for c in text)


def _read_line(prompt: str) -> str | None:
    """A line of standard input; None at its end or at an interrupt."""
    try:
        return input(prompt)
    except (EOFError, KeyboardInterrupt):
        if prompt:
            print()
        return None


def _obey(line: str, speakers: list[Speaker]) -> bool:
    """Carry out a command; False ends the conversation."""
    command, _, text = line.strip().partition(" ")
    if command == "/quit":
        return False
    if command in ("/reset", "/system"):
        for speaker in speakers:
            try:
                system = text.strip() or None
                speaker.begin(system if command == "/system" else _content(speaker.system))
            except UserError as error:
                print(f"error: {error}")
    else:
        if command != "/help":
            print(f"there is no command {command}")
        print(HELP)
    return True


def _content(messages: list[dict[str, str]]) -> str | None:
    return messages[0]["content"] if messages else None
