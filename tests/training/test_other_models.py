"""The engine trains a model of which it knows the protocol alone."""

from __future__ import annotations

import math
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from fastslots.training import find_checkpoint, train
from fastslots.training.rehearsal import rehearse
from fastslots.training.step import DivergedError
from tests.training import forked
from tests.training.colours import (
    ColourConfig,
    ColourModel,
    ColourRecipe,
    TrainableColours,
    train_colours,
)
from tests.training.runs import rows
from tests.training.tiny import Images, tiny, tiny_model, tiny_recipe


def test_another_model_trains_validates_draws_and_is_saved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = train_colours(tmp_path)
    logged, held_out = rows(tmp_path, "train"), rows(tmp_path, "validation")
    assert [row["step"] for row in logged] == [3, 6, 9, 12]
    names = {"step", "kind", "error", "gradient_linf_norm_all", "lr_all"}
    assert all(row.keys() == names for row in logged)
    assert [row["step"] for row in held_out] == [4, 8, 12]
    assert all(row.keys() == {"step", "kind", "loss", "lr_factor"} for row in held_out)
    assert held_out[-1]["loss"] < 0.5 * held_out[0]["loss"]
    assert f"step 12: held-out error {held_out[-1]['loss']:.3f}\n" in capsys.readouterr().out
    with Image.open(tmp_path / "samples" / "step-000000012.png") as picture:
        assert picture.size == (1, 2)
    loaded = ColourModel.from_pretrained(find_checkpoint(tmp_path, "last"))
    assert loaded.config == model.config
    assert all(map(torch.equal, loaded.state_dict().values(), model.state_dict().values()))


def test_another_model_goes_on_after_a_kill_with_the_same_bits(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    train_colours(whole)
    # The first image is loaded once more, to be checked; 26 more are those of six steps and a half.
    process = forked.process(train_colours, killed, killed_at=27)
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    assert [row["step"] for row in rows(killed)] == [3, 4, 6]
    train_colours(killed, resume=True)
    assert rows(killed) == rows(whole)
    last, expected = (find_checkpoint(folder, "last") for folder in (killed, whole))
    for file in ("model.safetensors", "optimizer.safetensors", "state.json"):
        assert (last / file).read_bytes() == (expected / file).read_bytes()


@pytest.mark.parametrize(
    ("method", "result", "message"),
    [
        pytest.param(
            "groups",
            lambda trainable: {"all": list(trainable.model.encoder.parameters())},
            r"every parameter that learns, once, .*; too many are 0, missing decoder.weight, decoder.bias$",
            id="not-all-parameters",
        ),
        pytest.param(
            "groups",
            lambda trainable: {"all": 2 * list(trainable.model.parameters())},
            r"every parameter that learns, once, and no other; too many are 4, missing none$",
            id="twice",
        ),
        pytest.param(
            "groups",
            lambda trainable: {"main": list(trainable.model.parameters())},
            r"recipe.rates must name the groups \['main'\]; got \['all'\]",
            id="no-rate",
        ),
        pytest.param(
            "forward",
            lambda _, image, keys: (image.sum(), image.sum()),
            r"forward must give 1 numbers; got shape \[2\]",
            id="losses",
        ),
        pytest.param(
            "look",
            lambda _, image, keys: image.new_zeros(1).double(),
            r"look must give 2 numbers of torch.float64; got shape \[1\]",
            id="looks",
        ),
        pytest.param(
            "validation_sums",
            lambda _, image, keys: image.new_zeros(2).double(),
            r"validation_sums must give 1 numbers of torch.float64; got shape \[2\]",
            id="validation",
        ),
        pytest.param(
            "validation_means",
            lambda *_: {"error": 1.0},
            r"validation_means must give a 'loss', by which runs are judged; got \['error'\]",
            id="no-loss",
        ),
        pytest.param(
            "step_line",
            "{mse:.1f}",
            r"step_line must show what is there, error, .*; got 'mse'",
            id="line",
        ),
        pytest.param(
            "validation_line",
            "{error:.1f}",
            r"validation_line must show what is there, loss; got 'error'",
            id="validation-line",
        ),
        pytest.param(
            "losses",
            {"lr_all": ""},
            r"names of losses, looks, schedule and groups must differ .*; got lr_all: rename it",
            id="clash",
        ),
        pytest.param(
            "validation_means",
            lambda *_: {"loss": 1.0, "step": 2.0},
            r"names of validation_means must differ and be none of .*; got step: rename it",
            id="reserved",
        ),
    ],
)
def test_what_a_trainable_gives_must_be_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, result: Any, message: str
) -> None:
    monkeypatch.setattr(
        TrainableColours, "looks", {"red": "", "blue": ""} if method == "look" else {}
    )
    monkeypatch.setattr(TrainableColours, method, result)
    with pytest.raises(ValueError, match=message):
        train_colours(tmp_path)
    assert not (tmp_path / "checkpoints").exists()
    assert not (tmp_path / "metrics.jsonl").exists() or method == "forward"


def test_a_model_or_a_recipe_of_another_kind_is_refused(tmp_path: Path) -> None:
    sets = (Images(4), Images(2), tmp_path)
    model: Any = tiny_model()
    with pytest.raises(
        TypeError, match="trainable must be a Trainable; got SLATE: wrap the model in one"
    ):
        train(model, tiny_recipe(), *sets)
    recipe: Any = {"steps": 3}
    with pytest.raises(TypeError, match="recipe must be a Recipe; got dict"):
        train(tiny(), recipe, *sets)
    with pytest.raises(ValueError, match=r"rates must name .*\['all'\]; got \['dvae', 'main'\]"):
        train(colours(), tiny_recipe(), *sets)


def begin(folder: Path, trainable: TrainableColours, **numbers: Any) -> None:
    recipe = ColourRecipe(steps=4, batch_size=4, validate_every=4, validation_images=2, **numbers)
    train(trainable, recipe, Images(6), Images(2), folder)


def colours() -> TrainableColours:
    return TrainableColours(ColourModel(ColourConfig()))


def test_groups_may_be_generators(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        TrainableColours, "groups", lambda self: {"all": (p for p in self.model.parameters())}
    )
    trainable = colours()
    before = [p.clone() for p in trainable.parameters()]
    begin(tmp_path, trainable)
    assert not any(map(torch.equal, before, trainable.parameters()))


def test_a_parameter_that_would_not_be_trained_or_saved_is_refused(tmp_path: Path) -> None:
    trainable = colours()
    trainable.scale = torch.nn.Parameter(torch.ones(()))
    with pytest.raises(ValueError, match=r"no parameters but its model's, .*; got scale$"):
        begin(tmp_path, trainable)
    trainable = colours()
    trainable.model.unused = torch.nn.Linear(1, 1, bias=False)
    with pytest.raises(
        ValueError, match=r"must get a gradient; got none for unused.weight: use it"
    ):
        begin(tmp_path, trainable)


@pytest.mark.parametrize("rate", [-0.1, math.nan, math.inf])
def test_a_rate_that_is_none_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rate: float
) -> None:
    monkeypatch.setattr(ColourRecipe, "rates", lambda _, step: {"all": rate if step else 0.1})
    with pytest.raises(ValueError, match=f"finite and not below 0; got all {rate} at step 1"):
        begin(tmp_path, colours())


def test_settings_that_would_not_be_read_again_are_refused(tmp_path: Path) -> None:
    config: Any = ColourConfig(width=2)
    trainable = colours()
    object.__setattr__(config, "image_size", (8,))
    trainable.model.config = config
    with pytest.raises(
        ValueError, match=r"the same after JSON, which has lists for tuples; got Col"
    ):
        rehearse(trainable, ColourRecipe())
    trainable.model.config = SimpleNamespace(image_shape=(3, 8, 8))
    with pytest.raises(TypeError, match="config must be a dataclass; got SimpleNamespace"):
        rehearse(trainable, ColourRecipe())


def test_a_picture_that_cannot_be_drawn_costs_no_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(*_: object) -> None:
        raise ZeroDivisionError("of the model")

    monkeypatch.setattr(TrainableColours, "draw", wrong)
    with pytest.raises(ZeroDivisionError, match="of the model"):
        begin(tmp_path, colours())
    assert find_checkpoint(tmp_path, "last").name == "step-000000004"


def test_a_run_that_was_called_says_what_to_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = TrainableColours.forward
    monkeypatch.setattr(
        TrainableColours, "forward", lambda *args, **schedule: (math.nan * forward(*args)[0],)
    )
    with pytest.raises(
        DivergedError, match=r"train\(\.\.\., ColourRecipe\(lr_all=0\.025\), resume=True\)$"
    ):
        begin(tmp_path, colours())
