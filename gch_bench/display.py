"""What a run prints on rank 0: progress bars in a terminal, plain lines of progress elsewhere, and tables in both."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

QUIET_SECONDS = 10.0  # the shortest time between two plain lines of progress


class Display:
    """Prints on the main process (`main`). On all other processes its methods print nothing."""

    def __init__(self, main: bool) -> None:
        self.main = main
        self.terminal = main and sys.stdout.isatty()
        # Output that is not a terminal has no width to fit into, so tables are written in full width.
        self.console = Console(quiet=not main, soft_wrap=True, highlight=False, width=None if self.terminal else 1000)

    def line(self, text: str) -> None:
        self.console.print(text, markup=False)

    def warn(self, text: str) -> None:
        self.console.print(f"WARNING: {text}", markup=False, style="bold yellow")

    @contextmanager
    def bar(self, what: str, total: int, unit: str) -> Iterator[Callable[[str, int], None]]:
        """A progress bar over `total` units. Yields advance(note, units), to be called when so many more units are done."""
        start = shown = time.monotonic()
        done = 0

        def rate(units: int) -> str:
            """Count the units, and return how many are done per second, in words."""
            nonlocal done
            done += units
            return f"{done / max(time.monotonic() - start, 1e-9):.0f} {unit}/s"

        if self.terminal:
            eta = (TextColumn("ETA"), TimeRemainingColumn(), TextColumn("{task.fields[note]}"))
            columns = (TextColumn("{task.description}"), BarColumn(bar_width=8), MofNCompleteColumn(), *eta)  # fits 80 columns
            with Progress(*columns, console=self.console) as progress:
                task = progress.add_task(what, total=total, note="")
                yield lambda note, units: progress.update(task, advance=units, note=f"{rate(units)}  {note}")
            return

        def advance(note: str, units: int) -> None:
            nonlocal shown
            speed, now = rate(units), time.monotonic()
            if now - shown >= QUIET_SECONDS or done >= total:
                eta = (now - start) / max(done, 1) * (total - done)
                self.line(f"{what}: {done}/{total} {unit}  {note}  {speed}  ETA {eta:.0f} s")
                shown = now

        yield advance

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], notes: Sequence[str] = ()) -> None:
        """Print a table whose first column is text and whose other columns are numbers, and the `notes` under it."""
        table = Table(title=title, title_justify="left")
        for i, column in enumerate(columns):
            table.add_column(column, justify="left" if i == 0 else "right", no_wrap=True)
        for row in rows:
            table.add_row(*row)
        self.console.print(table)
        for note in notes:
            self.line(note)
