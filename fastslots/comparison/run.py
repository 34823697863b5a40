"""Trains both models in turns, within a time, and keeps what there is on the disk."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch

from fastslots.comparison.arm import Arm, Plan
from fastslots.comparison.measure import draw, evaluation, look
from fastslots.comparison.memory import SceneMemory
from fastslots.comparison.plot import FIGURE, plot_comparison
from fastslots.comparison.record import FILE, ArmRecord, Comparison
from fastslots.comparison.settings import Settings
from fastslots.comparison.warm_up import CAPTURED, capture, step_ms, warm_up
from fastslots.data.scenes import Scenes
from fastslots.environment import describe_environment
from fastslots_kernels.checks import check_count, check_number

WARM_UP_STEPS = 5  # before the training, which forgets them
POINTS, POINTS_PER_CHUNK, CHUNKS_PER_LOOK = 480, 10, 6
RENDER_SHARE = 0.12  # of the time, at most
SPARE = 0.03  # of the time: files, and what a measurement of seconds misses


def compare(
    settings: Settings,
    device: torch.device,
    output: Path,
    *,
    minutes: float,
    steps: int | None = None,
    graphs: bool = True,
    commit: str | None = None,
    progress: Callable[[str], object] = lambda _: None,
) -> Comparison:
    """Trains SLATE with implicit and with unrolled slot attention.

    Both models start from the same weights, compute the same function, and see the same images with the
    same noise at every step; they take chunks of steps in turns. Steps are captured as CUDA graphs, in bf16;
    on a CPU they are eager, in float32. How many fit is measured before the training.

    `output` gets ``comparison.json``, ``comparison.png``, and for each model a folder of its name with its
    weights and a picture ``NAME.png``. All but the figure, which follows from the JSON file, are written
    eight times on the way; a model that diverges keeps its last finite weights.

    Args:
        settings: Model and recipe.
        device: Where.
        output: A folder that can be written to.
        minutes: For everything.
        steps: Of each model, if they fit. Default: as many as fit.
        graphs: Whether to capture steps on CUDA.
        commit: Of the sources; None: that of their git checkout.
        progress: Called with what has been done.

    Raises:
        TypeError: If minutes is no number or steps no int.
        ValueError: If minutes is not above 0, or steps below 1.
        OSError: If a file cannot be written.
    """
    minutes = check_number("minutes", minutes, above=0)
    if steps is not None:
        steps = check_count("steps", steps, 1)
    run = _Run(settings, device, output, 60 * minutes, commit, progress)
    run.prepare(graphs, steps)
    run.train()
    run.finish()
    return run.record


class _Run:
    """A comparison under way."""

    def __init__(
        self,
        settings: Settings,
        device: torch.device,
        output: Path,
        seconds: float,
        commit: str | None,
        progress: Callable[[str], object],
    ) -> None:
        self.start = time.perf_counter()
        self.settings, self.device, self.output = settings, device, output
        self.seconds, self.commit, self.progress = seconds, commit, progress
        self.train_set = self._render("train", settings.num_scenes)
        self.heldout = self._render("val", settings.num_heldout)
        self.render_seconds = self._elapsed()
        progress(f"rendered {len(self.train_set)} scenes in {self.render_seconds:.1f} s")
        self.arms = {
            name: Arm(config, settings, self.train_set, device)
            for name, config in settings.configs().items()
        }

    def prepare(self, graphs: bool, steps: int | None) -> None:
        """Warms up, captures and times steps and measurements; decides how many steps fit."""
        plan = self._plan(range(WARM_UP_STEPS), WARM_UP_STEPS)
        costs = {name: warm_up(arm, plan) for name, arm in self.arms.items()}
        wanted = graphs and self.device.type == "cuda"
        graph = capture(self.arms) if wanted else "not asked for"
        self.progress(f"one CUDA graph per step: {graph}")
        times = {name: cost.ms for name, cost in costs.items()}
        if graph == CAPTURED:
            for name, arm in self.arms.items():
                times[name] = step_ms(arm, plan)
        for arm in self.arms.values():
            arm.reset()
        clip, environment = self.settings.clip, describe_environment(self.device)
        if self.commit is not None:
            environment |= {"commit": self.commit, "dirty": False}
        self.record = Comparison(
            environment,
            asdict(self.settings) | {"clip": clip if math.isfinite(clip) else None},
            "bf16 autocast" if self.device.type == "cuda" else "float32",
            graph,
            len(self.train_set),
            planned_steps=1,
            render_seconds=round(self.render_seconds, 2),
            arms={
                name: ArmRecord(
                    asdict(arm.model.config),
                    sum(p.numel() for p in arm.parameters),
                    costs[name].ms,
                    times[name] if graph == CAPTURED else None,
                    costs[name].peak_mib,
                )
                for name, arm in self.arms.items()
            },
        )
        self._look()  # the first one compiles
        looks = self._timed(self._look)
        self.reserve = self._timed(self._evaluate) + looks + SPARE * self.seconds
        num_looks = math.ceil(POINTS / POINTS_PER_CHUNK / CHUNKS_PER_LOOK)
        left = self.seconds - self._elapsed() - self.reserve - num_looks * looks
        fit = max(1, int(1e3 * left / sum(times.values())))
        self.record.planned_steps = fit if steps is None else steps
        for arm_record in self.record.arms.values():
            del arm_record.heldout[1:]
        self.progress(
            f"{self.record.planned_steps} steps each ({fit} would fit): "
            + ", ".join(f"{name} {ms:.2f} ms" for name, ms in times.items())
        )

    def train(self) -> None:
        """All steps, as long as there is time."""
        total = self.record.planned_steps
        every = max(1, total // POINTS)
        size = every * POINTS_PER_CHUNK
        for chunk, first in enumerate(range(0, total, size)):
            if self._elapsed() > self.seconds - self.reserve:
                self.progress(f"out of time after {first} of {total} steps")
                break
            end = min(first + size, total)
            plan = self._plan(range(first, end), total)
            names = list(self.arms)
            for name in names if chunk % 2 == 0 else reversed(names):
                self._take(name, plan, first, every)
            self.record.steps = end
            if chunk % CHUNKS_PER_LOOK == CHUNKS_PER_LOOK - 1 and end < total:
                self._look()
                self._save()

    def finish(self) -> None:
        """The last look, evaluation and figure."""
        self._look()
        self._save()
        for name, scores in self._evaluate().items():
            self.record.arms[name].evaluation = scores
        self._save()
        plot_comparison(self.output / FILE, self.output / FIGURE)
        self.progress(f"done after {self._elapsed():.1f} s")

    def _take(self, name: str, plan: Plan, first: int, every: int) -> None:
        """A chunk of steps of one model, which goes back to its last weights if it diverges."""
        arm, record = self.arms[name], self.record.arms[name]
        if record.diverged_after is not None:
            return
        before, start = arm.snapshot(), time.perf_counter()
        history = arm.run(plan).cpu()
        seconds = time.perf_counter() - start
        if not record.add(history, first, seconds, self.settings.batch_size, every):
            arm.model.load_state_dict(before)
            self.progress(f"{name} diverged after step {record.diverged_after}")

    def _look(self) -> None:
        """Measures both models on held-out scenes and draws what they see."""
        step, planned = self.record.steps, self.record.planned_steps
        _, tau = self.settings.schedule(max(0, step - 1), planned)
        for name, arm in self.arms.items():
            row = look(arm.model, self.heldout, tau, self.settings.seed)
            self.record.arms[name].heldout.append({"step": step, "tau": tau, **row})
            draw(arm.model, self.heldout, self.output / f"{name}.png", self.settings.seed)
            words = (f"{key} {row[key]:.4g}" for key in ("cross_entropy", "mse", "fg_ari"))
            self.progress(f"step {step}, {name}: {', '.join(words)}")

    def _evaluate(self) -> dict[str, dict[str, list[float | None]]]:
        return {
            name: evaluation(arm.model, self.heldout, self.settings.seed)
            for name, arm in self.arms.items()
        }

    def _save(self) -> None:
        self.record.seconds = round(self._elapsed(), 1)
        self.record.save(self.output)
        for name, arm in self.arms.items():
            arm.model.save_pretrained(self.output / name)

    def _plan(self, steps: range, total: int) -> Plan:
        return Plan.of(self.settings, len(self.train_set), steps, total, self.device)

    def _render(self, split: str, count: int) -> SceneMemory:
        s = self.settings
        scenes = Scenes(
            count,
            split=split,
            image_size=s.image_size,
            min_objects=s.min_objects,
            max_objects=s.max_objects,
            mirror=s.mirror,
            device=self.device,
        )
        return SceneMemory.of(scenes, self.device, RENDER_SHARE * self.seconds)

    def _timed(self, action: Callable[[], object]) -> float:
        start = time.perf_counter()
        action()
        return time.perf_counter() - start

    def _elapsed(self) -> float:
        return time.perf_counter() - self.start
