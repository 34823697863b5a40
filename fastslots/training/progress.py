"""What someone who watches a training run sees."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

from fastslots.models.trainable import Trainable

WIDE = 140  # characters of a line that has room for all of it


class TrainingProgress:
    """A bar with the losses, the speed and the time left; plain lines where there is no terminal.

    Args:
        first_step: Where the run begins.
        steps: Where it ends.
        trainable: Says how its numbers are shown.
        shown: Whether this is the process that shows it.
    """

    def __init__(
        self, first_step: int, steps: int, trainable: type[Trainable], *, shown: bool = True
    ) -> None:
        self.console = Console(quiet=not shown)
        self.steps, self.trainable = steps, trainable
        # Where the terminal is narrow the losses take several lines, and nothing else gives way to them.
        self.bar = Progress(
            TextColumn("training"),
            BarColumn(40 if self.console.width >= WIDE else 8),
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[losses]}", table_column=Column()),
            TimeRemainingColumn(table_column=Column(no_wrap=True)),
            TextColumn("left"),
            console=self.console,
            disable=not (shown and self.console.is_terminal),
        )
        self.task = self.bar.add_task("training", total=steps, completed=first_step, losses="")

    def start(self) -> None:
        """Shows the bar."""
        self.bar.start()

    def stop(self) -> None:
        """Leaves the bar as it is."""
        self.bar.stop()

    def advance(self) -> None:
        """One step is done."""
        self.bar.advance(self.task)

    def report(self, step: int, row: dict[str, float]) -> None:
        """Shows the means of the last interval."""
        line = self.trainable.step_line + "  {images_per_second:.0f} images/s"
        text = line.format(**row)
        self.bar.update(self.task, losses=text)
        if not self.console.is_terminal:
            self.say(f"step {step}/{self.steps}  {text}")

    def report_validation(self, step: int, row: dict[str, float]) -> None:
        """Prints what a validation found above the bar."""
        self.say(f"step {step}: {self.trainable.validation_line.format(**row)}")

    def say(self, line: str) -> None:
        """Prints a line, above the bar if there is one."""
        self.console.print(line, highlight=False, soft_wrap=True)
