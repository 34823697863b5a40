"""``fastslots train --model autoencoder``."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from fastslots.models.autoencoder import SlotAutoencoder
from fastslots.models.registry import MODELS
from tests.cli.conftest import Command
from tests.training.tiny import TINY_FLAGS

FLAGS = {
    "model": "autoencoder",
    "settings": "cpu",
    "device": "cpu",
    "image-size": 16,
    "width": 8,
    "slot-size": 8,
    "mlp-hidden-size": 8,
    "batch-size": 4,
    "validation-images": 2,
    "num-scenes": 8,
    "cache": "none",
    "precision": "float32",
}
SMALL = [part for name, value in FLAGS.items() for part in (f"--{name}", value)]


@pytest.fixture
def run(fastslots: Command) -> Path:
    result = fastslots("train", "--output", "run", "--steps", 2, *SMALL)
    assert result.code == 0, result.err
    return Path("run")


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_run_folder_says_which_model_it_is_of(run: Path) -> None:
    config = json.loads((run / "config.json").read_text())
    assert config["kind"] == "autoencoder"
    assert config["model"]["backbone"] == "patches"
    assert (config["recipe"]["muon"], config["recipe"]["entropy"]) == (13, 0.05)
    assert list((run / "samples").glob("*.png"))
    model = SlotAutoencoder.from_pretrained(run / "checkpoints" / "step-000000002")
    assert model.config.width == 8
    trained = metrics(run)[0]
    assert {"colour_error", "entropy_penalty", "gradient_l2_norm_main", "lr_main"} < trained.keys()


def test_a_run_is_resumed_as_what_it_is(fastslots: Command, run: Path) -> None:
    result = fastslots("train", "--resume", run, "--steps", 3, "--entropy", 0.1, "--device", "cpu")
    assert result.code == 0, result.err
    assert json.loads((run / "config.json").read_text())["recipe"]["entropy"] == 0.1
    result = fastslots("train", "--resume", run, "--model", "slate")
    assert result.code == 2
    assert "resume takes model, data, settings and folder from the run; got --model" in result.err


def test_no_decay_leaves_the_rate_at_its_peak(fastslots: Command) -> None:
    options = ["--output", "run", "--steps", 3, "--log-every", 1, "--no-warmup"]
    assert fastslots("train", *options, *SMALL, "--no-decay").code == 0
    assert [row["lr_main"] for row in metrics(Path("run")) if row["kind"] == "train"] == 3 * [
        1.5e-3
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "autoencoders"], "model must be one of ('slate', 'autoencoder')"),
        (
            ["--model", "autoencoder", "--vocab-size", "8", "--d-model", "8"],
            "the model of autoencoder has no --vocab-size, --d-model: leave it out, or choose another",
        ),
        (["--entropy", "0.1"], "the recipe of slate has no --entropy: leave it out"),
        (
            ["--model", "autoencoder", "--image-size", "50"],
            "image_size must be a multiple of patch_size 4; got 50",
        ),
        (
            ["--model", "autoencoder", "--settings", "gpu", "--image-size", "96"],
            "image_size must be 8 doubled at least once, 16, 32, 64, 128 and so on, with backbone='pixels'; ",
        ),
        (["--model", "autoencoder", "--decay", "linear"], "decay must be one of"),
        (["--muon", "-1"], "muon must be at least 0 and finite; got -1.0"),
    ],
    ids=["name", "model", "recipe", "patches", "pixels", "decay", "muon"],
)
def test_what_is_wrong_is_named_before_a_folder_is_made(
    fastslots: Command, arguments: list[str], message: str
) -> None:
    result = fastslots("train", "--device", "cpu", "--output", "run", *arguments)
    assert result.code == 2
    assert message in result.err
    assert not Path("run").exists()


def test_a_run_of_a_kind_that_is_none_is_named(fastslots: Command, run: Path) -> None:
    config = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps(config | {"kind": "VAE"}))
    result = fastslots("train", "--resume", run, "--device", "cpu")
    assert result.code == 2
    assert "config.json: kind must be 'slate' or 'autoencoder'; got 'VAE'" in result.err


def test_a_run_without_a_kind_is_of_slate(fastslots: Command) -> None:
    options = [*TINY_FLAGS, "--batch-size", 2, "--validation-images", 2, "--num-scenes", 7]
    options += ["--no-whiten", "--draw-tokens", "--position-init", "normal", "--muon", 0]
    result = fastslots("train", "--output", "run", "--steps", 1, "--cache", "none", *options)
    assert result.code == 0, result.err
    path = Path("run/config.json")
    config = json.loads(path.read_text())
    del config["kind"]  # as versions wrote them that knew neither it nor these
    since = {"model": ("whiten", "draw_tokens"), "recipe": ("muon", "dvae_steps", "decay")}
    for group, names in since.items():
        for name in names:
            del config[group][name]
    path.write_text(json.dumps(config))
    result = fastslots("train", "--resume", "run", "--steps", 2, "--device", "cpu")
    assert result.code == 0, result.err
    written = json.loads(path.read_text())
    assert written["kind"] == "slate"
    found = [written[group][name] for group, names in since.items() for name in names]
    assert found == [False, True, 0.0, 0, "none"]


def test_a_flag_of_several_models_has_one_type() -> None:
    types: dict[str, set[object]] = {}
    for kind in MODELS.values():
        for cls in (kind.config, kind.recipe):
            for field in fields(cls):
                types.setdefault(field.name, set()).add(get_type_hints(cls)[field.name])
    assert all(len(found) == 1 for found in types.values())
