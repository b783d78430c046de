"""What a person sees while a stage runs, and how a person stops it."""

import os
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def progress(title: str, total: int, done: int = 0, visible: bool = True) -> Iterator["Bar"]:
    """A bar with the time left and live numbers on a terminal; a plain line every tenth of the way elsewhere."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    bar = Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(compact=True),
        TextColumn("{task.fields[live]}"),
        console=console,
        disable=not (visible and console.is_terminal),
    )
    with bar:
        task = bar.add_task(title, total=total, completed=done, live="")
        yield Bar(bar, task, title, total, done, plain=visible and not console.is_terminal)


class Bar:
    def __init__(self, bar: Any, task: Any, title: str, total: int, done: int, plain: bool):
        self._bar, self._task, self._title, self._total, self._done, self._plain = bar, task, title, total, done, plain

    def advance(self, live: str) -> None:
        self._done += 1
        self._bar.update(self._task, completed=self._done, live=live)
        if self._plain and (self._done == 1 or self._done % max(1, self._total // 10) == 0):
            print(f"{self._title} {self._done}/{self._total}  {live}", file=sys.stderr, flush=True)


@contextmanager
def stop_requests() -> Iterator["StopRequest"]:
    """Turn the first SIGINT or SIGTERM into a wish to stop after the current step; the second one ends the process."""
    request, before = StopRequest(), {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, request.ask)
    except ValueError:  # only the main thread may handle signals; elsewhere they keep their usual meaning
        pass
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class StopRequest:
    def __init__(self) -> None:
        self.asked = False

    def ask(self, number: int, frame: Any) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        print("\nstopping after this step; once more stops at once", file=sys.stderr, flush=True)

    def anywhere(self, accelerator: Any) -> bool:
        """Whether any process was asked: all must stop together, or the others wait for ever."""
        if accelerator.num_processes == 1:
            return self.asked
        import torch

        mine = torch.tensor([float(self.asked)], device=accelerator.device)
        return bool(accelerator.gather(mine).sum() > 0)


def silence_libraries() -> None:
    """Keep the libraries' own chatter out of the progress display; warnings that matter are ours to give."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # torch's spinning threads slow a busy machine down tenfold
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*|.*gradient_checkpointing_enable.*")
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
