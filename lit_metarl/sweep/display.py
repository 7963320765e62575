"""The display of a sweep: bars on a terminal, lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn


class Lines:
    """One line for whatever happens."""

    def say(self, text: str) -> None:
        """Show a line."""
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()

    def update(self, done: int, total: int, note: str, running: Mapping[str, float | None]) -> None:
        """Show how far the sweep is, and each run that goes on (None: not known)."""

    def close(self) -> None:
        """Show nothing more."""


class Bars(Lines):
    """Lines above a bar for the sweep and one for every run that goes on."""

    def __init__(self, console: Console) -> None:
        texts = [TextColumn(text, markup=False) for text in ("{task.description}", "{task.fields[note]}")]
        self._progress = Progress(texts[0], BarColumn(), texts[1], console=console, refresh_per_second=4)
        self._all = self._progress.add_task("all cells", total=None, note="")
        self._tasks: dict[str, TaskID] = {}
        self._progress.start()

    def say(self, text: str) -> None:
        """Show a line above the bars."""
        self._progress.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def update(self, done: int, total: int, note: str, running: Mapping[str, float | None]) -> None:
        """Move the bars."""
        self._progress.update(self._all, completed=done, total=total, note=note)
        for name in self._tasks.keys() - running.keys():
            self._progress.remove_task(self._tasks.pop(name))
        for name, fraction in running.items():
            if name not in self._tasks:
                self._tasks[name] = self._progress.add_task(name, total=None, note="")
            if fraction is not None:
                self._progress.update(self._tasks[name], total=1.0, completed=fraction, note=f"{fraction:.0%}")

    def close(self) -> None:
        """Leave the last picture and let go of the terminal."""
        for task in self._tasks.values():
            self._progress.remove_task(task)
        self._progress.stop()


def display() -> Lines:
    """The display for this standard output."""
    console = Console()
    return Bars(console) if console.is_terminal else Lines()
