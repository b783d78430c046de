"""Conversations in the terminal, with a tiny model and lines from a pipe."""

import io

import pytest
import torch

from rlhf.cli.chat import Speaker, StreamedText, chat, printable
from rlhf.cli.generate import Generator
from rlhf.cli.main import main
from rlhf.config.commands import ChatJob, GenerateJob
from rlhf.errors import UserError
from rlhf.trainers.ppo import PPOTrainer


@pytest.fixture
def model(models) -> str:
    return str(models("llama", chat=True))


@pytest.fixture
def talk(monkeypatch, capsys):
    """`talk(job, "hello\n/quit\n")`: what is printed."""

    def run(job, lines):
        monkeypatch.setattr("sys.stdin", io.StringIO(lines))
        capsys.readouterr()
        chat(job)
        return capsys.readouterr().out

    return run


def test_answers_are_those_of_generate_and_the_conversation_is_the_prompt(talk, model):
    out = talk(ChatJob(model=model, max_new_tokens=4), "the film\nis good\n")
    generator = Generator(model, GenerateJob(model=model, prompt="x", max_new_tokens=4))
    messages = [{"role": "user", "content": "the film"}]
    [(_, first)] = generator.respond([messages], 1)
    messages += [{"role": "assistant", "content": first}, {"role": "user", "content": "is good"}]
    [(_, second)] = generator.respond([messages], 2)
    assert out == f"{first}\n{second}\n"
    assert first != second


def test_commands_reset_set_the_system_message_and_quit(talk, model, monkeypatch):
    prompts = []
    original = Generator.respond
    monkeypatch.setattr(
        Generator, "respond", lambda self, p, *a, **k: prompts.append(p[0]) or original(self, p, *a, **k)
    )
    lines = "the\n/reset\nfilm\n/system be kind\nis\n/reset\ngood\n/unknown\n/quit\nnever\n"
    out = talk(ChatJob(model=model, max_new_tokens=2), lines)
    contents = [[(m["role"], m["content"]) for m in prompt] for prompt in prompts]
    kind = ("system", "be kind")
    assert contents == [[("user", "the")], [("user", "film")], [kind, ("user", "is")], [kind, ("user", "good")]]
    assert "there is no command /unknown" in out
    assert "/help" in out


def test_without_a_template_each_line_is_a_prompt_to_continue(talk, models):
    model = str(models("llama"))
    out = talk(ChatJob(model=model, max_new_tokens=3, temperature=0.0), "the film\n\n/system x\nthe film\n")
    opening, first, error, second = out.splitlines()
    assert "has no chat template: each line is a prompt of its own" in opening
    assert error.endswith("has no chat template, so it takes no system message")
    assert first == second != ""


def test_start_and_trained_model_answer_side_by_side(talk, job, change, models):
    start = str(models("llama", chat=True))
    PPOTrainer(change(job, model={"path": start}, ppo={"lr": 0.05})).train()
    out = talk(ChatJob(model=job.output, beside=True, max_new_tokens=4), "the film is\n")
    labels = [line.split(":")[0] for line in out.splitlines() if ": " in line]
    assert labels[-2:] == ["start", "trained"]
    with pytest.raises(UserError, match="no run folder, so nothing says what it started from"):
        chat(ChatJob(model=start, beside=True))


def test_old_turns_are_left_out_when_the_context_is_full(model, capsys):
    speaker = Speaker("", Generator(model, ChatJob(model=model, max_new_tokens=2)), None)
    speaker.generator.context_length = 24
    for _ in range(6):
        speaker.answer("the film is good")
    assert "messages no longer fit into 24 tokens and were left out" in capsys.readouterr().out
    assert len(speaker.messages) < 12
    speaker.answer("the film is good " * 20)
    assert "error: a prompt of" in capsys.readouterr().out


def test_an_interrupt_ends_the_answer_and_not_the_conversation(model, capsys, monkeypatch):
    speaker = Speaker("", Generator(model, ChatJob(model=model, max_new_tokens=8, min_new_tokens=7)), None)
    original = StreamedText.add

    def interrupted(self, token):
        original(self, token)
        if len(self._ids) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(StreamedText, "add", interrupted)
    speaker.answer("the film")
    assert capsys.readouterr().out.rstrip().endswith(" ...")
    assert [m["role"] for m in speaker.messages] == ["user", "assistant"]


class Bytes:
    """A tokenizer of bytes, of which several make a character."""

    def decode(self, ids, skip_special_tokens):
        return bytes(ids).decode("utf-8", errors="replace")


def test_half_a_character_and_half_a_stop_string_wait(capsys):
    text = StreamedText.__new__(StreamedText)
    text._tokenizer, text._stops, text._ids, text.shown = Bytes(), ("\nUser:",), [], ""
    seen = []
    for byte in "né\nUs\nUser: x".encode():
        text.add(torch.tensor([byte]))
        seen.append(text.shown)
    assert seen[:4] == ["n", "n", "né", "né"]
    assert seen[5] == "né"  # "\nUs" may be the beginning of the stop string
    assert seen[-1] == "né\nUs"
    assert capsys.readouterr().out == "né\nUs"


def test_a_model_cannot_move_the_cursor():
    assert printable("a\x1b[2Jb\r\x07\x9bc\td\n") == "a\ufffd[2Jb\ufffd\ufffd\ufffdc\td\n"


def test_the_command_talks(models, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("the film\n"))
    assert main(["chat", str(models("llama", chat=True)), "--max_new_tokens", "3"]) == 0
    assert capsys.readouterr().out.strip()
