"""What a comparison writes down: one JSON file, whole at every moment."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from fastslots.benchmark.results_file import json_of
from fastslots.comparison.arm import COLUMNS
from fastslots.environment import Environment
from fastslots.files import write_text

SCHEMA = 1
FILE = "comparison.json"
# A point of a curve: its last step, means over its steps, and the largest value of the gradients' columns.
POINT = ("step", *COLUMNS, *(f"largest_{name}" for name in COLUMNS[2:]))


@dataclass
class ArmRecord:
    """One model.

    Attributes:
        model: Its settings.
        num_parameters: How many are trained.
        eager_step_ms: Of a step that is no graph, before the training.
        graph_step_ms: Of a replay; None: steps were not replayed.
        peak_mib: Of an eager step, beyond weights, Adam's state and images; None on a CPU.
        curve: Points as `POINT` names their entries; losses in nats and squared error per image, norms
            before clipping.
        chunks: Of steps taken in turns: first, end, seconds, images per second.
        heldout: At some steps, on held-out scenes in float32.
        evaluation: Of the last weights: mean and standard error by metric.
        diverged_after: Step after which a loss or gradient was not finite; None: all were. What was measured
            later is of the last finite weights.
    """

    model: dict[str, Any]
    num_parameters: int
    eager_step_ms: float
    graph_step_ms: float | None
    peak_mib: float | None
    curve: list[list[float]] = field(default_factory=list)
    chunks: list[list[float]] = field(default_factory=list)
    heldout: list[dict[str, float]] = field(default_factory=list)
    evaluation: dict[str, list[float | None]] = field(default_factory=dict)
    diverged_after: int | None = None

    def add(self, history: Tensor, first: int, seconds: float, batch_size: int, every: int) -> bool:
        """Takes the values of some steps, ``[steps, 6]``; returns whether all of them are finite."""
        finite = (
            history.isfinite().all(1).long().cumprod(0).sum().item()
        )  # steps before the first that is not
        good = history[: int(finite)].double()
        for start in range(0, len(good), every):
            part = good[start : start + every]
            means, largest = part.mean(0).tolist(), part.amax(0).tolist()[2:]
            self.curve.append([first + start + len(part), *map(_short, (*means, *largest))])
        count = len(history)
        self.chunks.append(
            [first, first + count, round(seconds, 4), round(count * batch_size / seconds, 1)]
        )
        if len(good) < count:
            self.diverged_after = first + len(good)
        return self.diverged_after is None


@dataclass
class Comparison:
    """A comparison so far.

    Attributes:
        environment: Where.
        settings: The recipe.
        precision: Of a step.
        graph: Whether steps are CUDA graphs, and if not why.
        num_scenes: Scenes to train on.
        planned_steps: By which the schedules go.
        steps: Done by each model.
        seconds: From start to now; of these, of rendering.
        render_seconds: Of rendering.
        arms: The models by name.
    """

    environment: Environment
    settings: dict[str, Any]
    precision: str
    graph: str
    num_scenes: int
    planned_steps: int
    render_seconds: float
    arms: dict[str, ArmRecord]
    steps: int = 0
    seconds: float = 0.0

    def save(self, folder: Path) -> None:
        """Writes `FILE`.

        Raises:
            OSError: If it cannot be written.
        """
        text = json.dumps({"schema": SCHEMA, "point": POINT, **asdict(self)}, separators=(",", ":"))
        write_text(folder / FILE, text.replace('],["', '],\n["').replace("],[", "],\n[") + "\n")

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads what `save` wrote.

        Raises:
            OSError: If it cannot be read.
            ValueError: If it is no such file.
        """
        with json_of(path, "comparison") as content:
            if content.pop("schema") != SCHEMA or tuple(content.pop("point")) != POINT:
                raise ValueError(f"schema must be {SCHEMA}")
            arms = {name: ArmRecord(**arm) for name, arm in content.pop("arms").items()}
            return cls(arms=arms, **content)


def _short(value: float) -> float:
    """Five digits of it."""
    return float(f"{value:.5g}") if math.isfinite(value) else value
