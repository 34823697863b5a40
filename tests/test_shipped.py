"""How the models of the package are made: for real, at a size of seconds; and what they are."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from fastslots.data.scenes import Scenes
from fastslots.evaluation import evaluate
from fastslots.models.pretrained import shipped_models
from fastslots.models.registry import load_model
from fastslots.shipped.make import make
from fastslots.shipped.models import MODELS, ShippedModel
from fastslots.shipped.record import ShippedResults, seeds_markdown, shipped_markdown

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "pretrained"
TINY = (
    *("--settings", "cpu", "--slot-size", "8", "--mlp-hidden-size", "8", "--num-scenes", "16"),
    *("--image-size", "16", "--steps", "4", "--batch-size", "4", "--validate-every", "2"),
    *("--validation-images", "2", "--log-every", "2", "--warmup-steps", "1", "--cache", "cache"),
)
KINDS = {
    "SlotAutoencoder": ("--model", "autoencoder", "--width", "8"),
    "SLATE": ("--model", "slate", "--d-model", "8", "--vocab-size", "8"),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_is_trained_measured_drawn_and_put_in_its_place(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said: list[str] = []
    shipped = ShippedModel("tiny", (*KINDS[kind], *TINY), num_iterations=5)
    folders = Path("run"), Path("results")
    results = make(shipped, *folders, said.append, to=Path("models"))
    assert any(line.startswith("tiny: step 4/4") for line in said)
    trained, measured = results.rows
    assert [row.num_iterations for row in results.rows] == [3, 5]
    assert trained.kind == kind
    assert [step for step, _ in trained.curve] == [2, 4]
    assert trained.config["recipe"]["steps"] == 4
    assert trained.metrics.keys() == measured.metrics.keys() > {"fg_ari", "mean_best_overlap"}
    assert trained.metrics != measured.metrics
    assert ShippedResults.load(Path("results/tiny.json")).rows == results.rows
    model = load_model(Path("models/tiny"))
    assert (model.kind, model.config.num_iterations) == (kind, 5)
    for name in ("tiny", "tiny-curve"):
        with Image.open(f"results/{name}.png") as picture:
            assert picture.width > 300
    said.clear()
    again = make(shipped, *folders, said.append, to=Path("models"))
    assert said == ["measuring tiny on held-out scenes"]
    assert again.rows == results.rows
    table = shipped_markdown(results)
    assert f"| tiny | {kind} | 16 |" in table
    assert "`fastslots train --model" in table


def test_a_training_that_was_interrupted_goes_on() -> None:
    shipped = ShippedModel("tiny", ("--steps", "4"), num_iterations=5)
    begin = shipped.train_command(Path("run"), resume=False)
    assert begin[:3] == [sys.executable, "-m", "fastslots"]
    assert begin[3:] == ["train", "--device", "cpu", "--output", "run", "--steps", "4"]
    assert shipped.train_command(Path("run"), resume=True)[-2:] == ["--resume", "run"]
    assert shipped.command == "fastslots train --steps 4 --device cpu"


def test_the_package_brings_the_models_that_it_says_how_to_make() -> None:
    assert shipped_models() == sorted(MODELS)


@pytest.mark.parametrize("name", MODELS)
def test_a_shipped_model_is_what_its_figures_are_of(name: str) -> None:
    model, shipped = load_model(Path(name)), MODELS[name]
    row = ShippedResults.load(RESULTS / f"{name}.json").rows[-1]
    assert (row.case, row.kind, row.command) == (name, model.kind, shipped.command)
    assert model.config.num_iterations == row.num_iterations == shipped.num_iterations
    config = type(model.config)(**row.config["model"] | {"num_iterations": row.num_iterations})
    assert model.config == config
    data = {name: row.config["data"][name] for name in ("min_objects", "max_objects", "mirror")}
    scenes = Scenes(32, split="test", image_size=config.image_size, **data)
    means = evaluate(model, scenes).means
    for metric in ("fg_ari", "mean_best_overlap"):
        mean, wanted = means[metric], row.metrics[metric][0]
        assert mean is not None
        assert mean.standard_error is not None
        assert wanted is not None
        assert abs(mean.mean - wanted) < 4 * mean.standard_error


def test_a_table_of_seeds_names_each_and_tells_every_command_once() -> None:
    (row,) = ShippedResults.load(RESULTS / "slate.json").rows[:1]
    recipe = row.config["recipe"]
    rows = [
        replace(row, case=case, command=f"{case} command", config=row.config | {"recipe": seeded})
        for case in ("before", "now")
        for seeded in (recipe | {"seed": seed} for seed in range(2))
    ]
    environment = ShippedResults.load(RESULTS / "slate.json").environment
    lines = seeds_markdown(ShippedResults(environment, rows)).splitlines()
    assert [line.split("|")[1:3] for line in lines[2:6]] == [
        [" before ", " 0 "],
        [" before ", " 1 "],
        [" now ", " 0 "],
        [" now ", " 1 "],
    ]
    assert lines.count("before: `before command`") == lines.count("now: `now command`") == 1
    nats = row.metrics["cross_entropy_nats_per_image"][0]
    assert nats is not None
    assert f"| {nats:.0f} |" in lines[2]
