"""How far a stage is and how long it still takes: a bar on a terminal, a plain line now and then in a log."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

LINE_SECONDS = 30.0  # [ours] often enough to see that a stage lives, seldom enough for a log


class Bar(Protocol):
    """What `progress` hands to the stage."""

    def advance(self, n: int) -> None:
        """Count n more units of work as done."""


@contextmanager
def progress(total: int, description: str, done: int) -> Iterator[Bar]:
    """Show progress on stderr with the time left.

    total: units of work in all; done: units that an interrupted run has already left, which do not count for the speed.
    """
    if not sys.stderr.isatty():
        lines = _Lines(total, description, done)
        yield lines
        lines.end()
        return
    # Imported here because a log needs none of it.
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    left = (TextColumn("left"), TimeRemainingColumn())
    with Progress(*columns, *left, console=Console(stderr=True), speed_estimate_period=300) as display:
        yield _RichBar(display, display.add_task(description, total=total, completed=done))


class _RichBar:
    """A task of a rich display."""

    def __init__(self, display: "Progress", task: "TaskID") -> None:
        self._display, self._task = display, task

    def advance(self, n: int) -> None:
        self._display.advance(self._task, n)


class _Lines:
    """Plain lines, at most one every LINE_SECONDS and one at the end."""

    def __init__(self, total: int, description: str, done: int) -> None:
        self.total, self.description, self.done = total, description, done
        self._resumed_at = done
        self._started = self._said = time.monotonic()

    def advance(self, n: int) -> None:
        self.done += n
        now = time.monotonic()
        if now - self._said >= LINE_SECONDS and self.done < self.total:
            self._said = now
            fresh = self.done - self._resumed_at
            left = (now - self._started) / fresh * (self.total - self.done) if fresh else None
            rest = f", {duration(left)} left" if left is not None else ""
            self._say(f"{self.done}/{self.total} ({100 * self.done // max(1, self.total)} %){rest}")

    def end(self) -> None:
        self._say(f"{self.done}/{self.total} in {duration(time.monotonic() - self._started)}")

    def _say(self, text: str) -> None:
        print(f"{self.description}: {text}", file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """Seconds as a person reads them: "45 s", "3 min 20 s", "2 h 5 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
