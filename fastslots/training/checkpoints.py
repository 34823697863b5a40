"""Checkpoints that are whole or not there.

A run keeps its checkpoints in ``checkpoints/step-000001000/``: what the model's `save_pretrained` writes,
the optimiser's state as safetensors and the rest as JSON. Each is written to a hidden folder beside its
place and renamed, so that a crash, a full disk or an interrupt leaves the earlier ones as they were.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from torch import Tensor, nn

from fastslots._extras import require
from fastslots.files import remove_partial, sync
from fastslots.models.pretrained import PretrainedModel
from fastslots.training.folder import check_run_folder
from fastslots.training.optimizers import Optimizers
from fastslots.training.plateau import Plateau

_STEPS = "step-" + 9 * "[0-9]"


@dataclass
class RunState:
    """Where a run stands, besides its weights and the optimiser's state.

    Attributes:
        step: Steps done.
        best_step: The step whose validation had the lowest loss so far, 0 before the first.
        plateau: The state of the learning rates' halving.
        interval: What each step since the last line of ``metrics.jsonl`` has to say in the next one.
    """

    step: int = 0
    best_step: int = 0
    plateau: Plateau = field(default_factory=Plateau)
    interval: list[list[float]] = field(default_factory=list)


def save_checkpoint(
    run: Path, state: RunState, model: PretrainedModel, optimizers: Optimizers, *, keep: int
) -> Path:
    """Writes a checkpoint, then removes all but the last `keep` and the best.

    Raises:
        FileNotFoundError: If the run folder has vanished.
        OSError: If it cannot be written; earlier checkpoints are untouched.
    """
    step, folder = state.step, run / "checkpoints"
    final = folder / step_name(step)
    partial = _partial(final)
    try:
        folder.mkdir(exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        model.save_pretrained(partial)
        safetensors = require("safetensors.torch", "train")
        tensors = {
            name: state[key].detach().cpu().contiguous()
            for name, key, state, _ in optimizer_entries(model, optimizers)
        }
        safetensors.save_file(tensors, partial / "optimizer.safetensors")
        (partial / "state.json").write_text(json.dumps(asdict(state), indent=2))
        for path in (*partial.iterdir(), partial):
            sync(path)
        _put_in_place(partial, final)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if not isinstance(error, Exception):
            raise
        check_run_folder(run)
        raise OSError(
            f"the checkpoint of step {step} could not be written to {folder}: {error}; "
            "earlier checkpoints are as they were"
        ) from error
    _prune(folder, keep)
    return final


def tidy(run: Path) -> None:
    """Removes what a run that was killed left half done, and finishes a replacement it was at.

    Raises:
        OSError: If something cannot be removed.
    """
    folder = run / "checkpoints"
    for replaced in folder.glob(".step-*.replaced"):
        final = replaced.with_name(replaced.stem[1:])
        if final.exists():
            shutil.rmtree(replaced)
        else:
            replaced.rename(final)
    for partial in folder.glob(".step-*.partial"):
        shutil.rmtree(partial)
    remove_partial(run)
    remove_partial(run / "samples")


def checkpoints_of(run: Path) -> list[Path]:
    """The folders of a run's checkpoints, the earliest first."""
    return sorted((run / "checkpoints").glob(_STEPS))


def last_step(run: Path) -> int:
    """The step of a run's last checkpoint, 0 if it has none yet."""
    steps = checkpoints_of(run)
    return int(steps[-1].name.removeprefix("step-")) if steps else 0


def is_model(folder: Path) -> bool:
    """Whether a folder is a checkpoint, or a model that was saved by itself."""
    return (folder / "model.safetensors").is_file()


def step_name(step: int) -> str:
    """What the folder of a step's checkpoint is called."""
    return f"step-{step:09d}"


def find_checkpoint(folder: Path | str, which: str = "best") -> Path:
    """The checkpoint that a folder stands for: a run, its ``checkpoints``, or a checkpoint itself.

    Args:
        folder: Any of these.
        which: ``"best"`` (by validation loss; the last if none is marked) or ``"last"``.

    Raises:
        FileNotFoundError: If there is none.
    """
    folder = Path(folder)
    if is_model(folder):
        return folder
    inner = folder / "checkpoints"
    inner = inner if inner.is_dir() else folder
    steps = sorted(inner.glob(_STEPS))
    if not steps:
        raise FileNotFoundError(
            f"{folder} holds no checkpoint: expected a run folder, or a folder with "
            "config.json and model.safetensors"
        )
    best = _best(steps)
    return best if which == "best" and best is not None else steps[-1]


def _best(steps: list[Path]) -> Path | None:
    """The best of some checkpoints, as the last of them says, if it is there."""
    try:
        step = json.loads((steps[-1] / "state.json").read_text())["best_step"]
        found = steps[-1].with_name(step_name(step))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    return found if found in steps else None


def _partial(final: Path) -> Path:
    return final.with_name(f".{final.name}.partial")


def _put_in_place(partial: Path, final: Path) -> None:
    """Gives a whole checkpoint its name; one of a step done again is never without one of the two."""
    replaced = final.with_name(f".{final.name}.replaced")
    if final.exists():
        final.rename(replaced)
    try:
        partial.rename(final)
    except OSError:
        if replaced.exists():
            replaced.rename(final)
        raise
    sync(final.parent)
    shutil.rmtree(replaced, ignore_errors=True)  # `tidy` removes what is left


def _prune(folder: Path, keep: int) -> None:
    steps = sorted(folder.glob(_STEPS))
    best = _best(steps)
    for old in steps[:-keep]:
        if old != best:
            # Renamed first: what a kill leaves of it must not pass for a checkpoint.
            # What cannot be removed now is no loss, and `tidy` tries again.
            with suppress(OSError):
                shutil.rmtree(old.rename(_partial(old)))


def optimizer_entries(
    model: nn.Module, optimizers: Optimizers
) -> Iterator[tuple[str, str, dict[str, Tensor], nn.Parameter]]:
    """What the optimisers keep, as checkpoints name it: name, its key in which state, of which parameter."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for parameter, key, state in optimizers.entries():
        yield f"{key}.{names[id(parameter)]}", key, state, parameter
