"""Progress display of a run on the terminal, and requests to stop it."""

import os
import signal
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

ESTIMATE_AFTER = 2.0
"""Seconds after which the time left is estimated from the steps so far: the first one, or several short ones."""


def is_due(every: int, step: int) -> bool:
    """Whether something done every so many steps is done after this one; never where `every` is 0."""
    return every > 0 and step % every == 0


@contextmanager
def progress(title: str, total: int, done: int = 0, visible: bool = True) -> Iterator["Bar"]:
    """A bar with the time left and live numbers on a terminal; elsewhere a plain line every tenth of the steps.

    Args:
        total: steps of the run.
        done: steps that are finished already.
        visible: False shows nothing, as on ranks other than 0.
    """
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
        yield Bar(bar, task, title, total, done, plain=visible and not console.is_terminal, visible=visible)


class Bar:
    """The display of one run's progress."""

    def __init__(self, bar: Any, task: Any, title: str, total: int, done: int, plain: bool, visible: bool):
        self._bar = bar
        self._task = task
        self._title = title
        self._total = total
        self._done = done
        self._plain = plain
        self._visible = visible
        self._first = done
        self._start = time.monotonic()
        self._is_estimated = False

    def advance(self, live: str) -> None:
        """Count one more step, and show its numbers; early on, once, how long the others will take."""
        self._done += 1
        steps, seconds = self._done - self._first, time.monotonic() - self._start
        if not self._is_estimated and seconds >= ESTIMATE_AFTER and self._done < self._total:
            self._is_estimated = True
            left = self._total - self._done
            text = f"{self._title}: {seconds / steps:.3g} s a step, about {_duration(left * seconds / steps)} left"
            if self._visible:
                self._bar.console.print(f"{text} for {left:,} more", soft_wrap=True, highlight=False)
        self._bar.update(self._task, completed=self._done, live=live)
        if self._plain and (self._done == 1 or self._done % max(1, self._total // 10) == 0):
            left = (self._total - self._done) * seconds / steps
            ending = f"  {_duration(left)} left" if 0 < self._done < self._total else ""
            print(f"{self._title} {self._done}/{self._total}  {live}{ending}", file=sys.stderr, flush=True)


def _duration(seconds: float) -> str:
    """Seconds as text: `40 s`, `12 min`, `3.5 h`, `4 days`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"


@contextmanager
def stop_requests() -> Iterator["StopRequest"]:
    """Turn the first SIGINT or SIGTERM into a request to stop after the current step; the second one interrupts."""
    request = StopRequest()
    previous = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            previous[number] = signal.signal(number, request.handle)
    except ValueError:  # only the main thread may set signal handlers; elsewhere signals keep their default effect
        pass
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class StopRequest:
    """Whether this process received a signal to stop."""

    def __init__(self) -> None:
        self.received = False

    def handle(self, number: int, frame: Any) -> None:
        """The signal handler."""
        if self.received:
            raise KeyboardInterrupt
        self.received = True
        print("\nstopping after this step; a second signal stops at once", file=sys.stderr, flush=True)

    def anywhere(self, accelerator: Any) -> bool:
        """Whether any process received a signal: all must stop together, or the others wait forever."""
        if accelerator.num_processes == 1:
            return self.received
        import torch

        received = torch.tensor([float(self.received)], device=accelerator.device)
        return bool(accelerator.gather(received).sum() > 0)


def silence_libraries() -> None:
    """Keep warnings and progress bars of other libraries out of the progress display."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # torch's spinning threads slow a busy machine down tenfold
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*|.*gradient_checkpointing_enable.*")
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
