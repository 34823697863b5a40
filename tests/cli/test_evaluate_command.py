"""``fastslots evaluate``."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from fastslots.data.source import DataSource
from fastslots.environment import Environment
from fastslots.evaluation import evaluate
from fastslots.models.autoencoder import SlotAutoencoder, SlotAutoencoderConfig
from fastslots.models.registry import load_model
from fastslots.models.slate import SLATE, SLATEConfig, SLATERecipe
from tests.cli.conftest import Command
from tests.training.tiny import TINY, tiny_model

SCENES = DataSource(num_scenes=35, max_objects=4, mirror=False)
MASK_METRICS = ["fg_ari", "ari", "mean_best_overlap"]
WITHOUT_MASKS = [
    "unigram_entropy_nats_per_image",
    "cross_entropy_nats_per_image",
    "cross_entropy_nats_per_token",
    "dvae_squared_error_per_image",
    "dvae_squared_error_per_value",
    "slots_squared_error_per_image",
    "slots_squared_error_per_value",
    "slots_used_per_image",
]


def write_run(run: Path, source: DataSource, step: int = 2) -> Path:
    """A run folder with one checkpoint; returns the checkpoint."""
    parts: dict[str, Any] = {"model": SLATEConfig(**TINY), "recipe": SLATERecipe(), "data": source}
    run.mkdir()
    config = {name: dataclasses.asdict(part) for name, part in parts.items()}
    (run / "config.json").write_text(json.dumps(config))
    checkpoint = run / "checkpoints" / f"step-{step:09d}"
    tiny_model().save_pretrained(checkpoint)
    (checkpoint / "state.json").write_text(json.dumps({"step": step}))
    return checkpoint


def tiny_autoencoder(**changes: Any) -> SlotAutoencoder:
    """As small as `tiny_model`, whose images it takes."""
    sizes: dict[str, Any] = {name: TINY[name] for name in ("image_size", "num_slots", "slot_size")}
    settings = sizes | {"backbone": "patches", "patch_size": 2, "width": 8, "mlp_hidden_size": 8}
    torch.manual_seed(0)
    return SlotAutoencoder(SlotAutoencoderConfig(**settings | changes))


@pytest.fixture
def scene_run(fastslots: Command) -> Path:
    return write_run(Path("run"), SCENES).parent.parent


@pytest.fixture
def folder_run(fastslots: Command, images: Path) -> Path:
    return write_run(Path("run"), DataSource(data=str(images))).parent.parent


def read(folder: Path | str) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((Path(folder) / "evaluation.json").read_text())
    return report


def test_a_run_on_scenes_is_measured_with_its_own_settings(
    fastslots: Command, scene_run: Path
) -> None:
    result = fastslots("evaluate", scene_run, "--device", "cpu")
    assert result.code == 0, result.err
    folder = scene_run / "evaluation-test"
    assert sorted(path.name for path in folder.iterdir()) == ["evaluation.json", "evaluation.png"]
    report = read(folder)
    assert report["checkpoint"].endswith("run/checkpoints/step-000000002")
    assert (report["step"], report["split"], report["num_images"]) == (2, "test", 5)
    assert report["data"] == dataclasses.asdict(SCENES)
    assert report["model"] == dataclasses.asdict(SLATEConfig(**TINY))
    assert report["environment"].keys() == Environment.__annotations__.keys()
    assert set(report["metrics"]) == {*WITHOUT_MASKS, *MASK_METRICS}
    assert report["unmeasured"] == {}
    assert report["ranked_by"] == "fg_ari"
    assert [example["rank"] for example in report["examples"]] == ["best", "median", "worst"]
    for name in report["metrics"]:
        assert name in result.out
    assert f"wrote {folder.absolute() / 'evaluation.json'}" in result.out


def test_the_numbers_are_those_of_the_function(fastslots: Command, scene_run: Path) -> None:
    options = ["--seed", 3, "--batch-size", 2, "--images", 4, "--split", "val"]
    assert fastslots("evaluate", scene_run, "--device", "cpu", *options).code == 0
    data = SCENES.open("val", 8, torch.device("cpu"))
    model = SLATE.from_pretrained(scene_run / "checkpoints" / "step-000000002")
    expected = evaluate(model, data, num_images=4, batch_size=2, seed=3)
    report = read(scene_run / "evaluation-val")
    assert report["num_images"] == 4
    for name, mean in expected.means.items():
        assert mean is not None
        assert report["metrics"][name] == mean._asdict()
    assert report["examples"] == [example._asdict() for example in expected.examples]


def test_the_picture_has_a_row_for_the_best_the_median_and_the_worst_image(
    fastslots: Command, scene_run: Path
) -> None:
    assert fastslots("evaluate", scene_run, "--device", "cpu").code == 0
    with Image.open(scene_run / "evaluation-test" / "evaluation.png") as picture:
        assert picture.height == 32 + 3 * 128 + 2 * 4 + 12
        # Image, dVAE, slots, objects, segments and three slots, beside labels.
        assert picture.width > 12 + 8 * 132 + 40


def test_a_trained_run_on_a_folder_is_measured_without_masks(
    fastslots: Command, images: Path
) -> None:
    sizes = [p for name, value in TINY.items() for p in (f"--{name.replace('_', '-')}", value)]
    options = ["--batch-size", 4, "--validation-images", 2, "--device", "cpu", "--steps", 1]
    trained = fastslots("train", "--data", images, "--output", "run", *sizes, *options)
    assert trained.code == 0, trained.err
    result = fastslots("evaluate", "run", "--output", "out", "--device", "cpu")
    assert result.code == 0, result.err
    report = read("out")
    assert (report["step"], report["num_images"]) == (1, 3)
    assert [report["metrics"][name] for name in MASK_METRICS] == [None] * 3
    assert report["unmeasured"] == dict.fromkeys(MASK_METRICS, "the images have no masks")
    assert report["ranked_by"] == "slots_squared_error_per_image"
    assert all(math.isfinite(report["metrics"][name]["mean"]) for name in WITHOUT_MASKS)
    assert "the images have no masks" in result.out


@pytest.mark.parametrize("inner", ["checkpoints", "checkpoints/step-000000002"])
def test_a_checkpoint_knows_the_run_it_is_in(
    fastslots: Command, folder_run: Path, inner: str
) -> None:
    assert fastslots("evaluate", folder_run / inner, "--device", "cpu").code == 0
    assert read(folder_run / "evaluation-test")["step"] == 2


def test_flags_change_single_settings_of_the_data(fastslots: Command, scene_run: Path) -> None:
    flags = ["--num-scenes", 21, "--max-objects", 6, "--mirror", "--cache", "cache"]
    result = fastslots("evaluate", scene_run, "--device", "cpu", *flags)
    assert result.code == 0, result.err
    report = read(scene_run / "evaluation-test")
    cache = str(Path("cache").absolute())
    changes = {"num_scenes": 21, "max_objects": 6, "mirror": True, "cache": cache}
    assert report["data"] == dataclasses.asdict(SCENES) | changes
    assert report["num_images"] == 3


def test_a_model_without_a_run_is_measured_on_the_data_given(
    fastslots: Command, images: Path
) -> None:
    tiny_model().save_pretrained("model")
    result = fastslots("evaluate", "model", "--data", images, "--device", "cpu")
    assert result.code == 0, result.err
    report = read("model-evaluation-test")
    assert report["step"] is None
    assert report["data"]["data"] == str(images)


def test_a_slot_autoencoder_is_measured_by_its_masks_and_its_attention(fastslots: Command) -> None:
    tiny_autoencoder().save_pretrained("model")
    scenes = ["--data", "scenes", "--num-scenes", 35, "--max-objects", 4, "--no-mirror"]
    result = fastslots("evaluate", "model", *scenes, "--device", "cpu")
    assert result.code == 0, result.err
    report = read("model-evaluation-test")
    data = SCENES.open("test", 8, torch.device("cpu"))
    expected = evaluate(load_model("model"), data)
    assert report["metrics"] == {
        name: mean and mean._asdict() for name, mean in expected.means.items()
    }
    own = {f"squared_error_per_{unit}" for unit in ("image", "value")} | {"slots_used_per_image"}
    attention = {f"attention_{name}" for name in MASK_METRICS}
    assert report["metrics"].keys() == {*own, *MASK_METRICS, *attention}
    assert report["ranked_by"] == "fg_ari"
    assert report["model"] == dataclasses.asdict(tiny_autoencoder().config)
    assert all(name in result.out for name in report["metrics"])
    with Image.open("model-evaluation-test/evaluation.png") as picture:
        assert picture.width > 12 + 8 * 132 + 40  # eight panels beside labels


def test_a_model_that_comes_with_the_package_is_called_by_its_name(
    fastslots: Command, images: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shipped = tmp_path / "shipped"
    monkeypatch.setattr("fastslots.models.pretrained.SHIPPED", shipped)
    tiny_autoencoder().save_pretrained(shipped / "blocks")
    before = sorted(shipped.rglob("*"))
    result = fastslots("evaluate", "blocks", "--data", images, "--device", "cpu")
    assert result.code == 0, result.err
    assert read("blocks-evaluation-test")["checkpoint"] == str(shipped / "blocks")
    assert sorted(shipped.rglob("*")) == before
    without = fastslots("evaluate", "blocks")
    assert without.code == 2
    assert "blocks lies in no run whose data could be taken: give --data" in without.err
    other = fastslots("evaluate", "bricks")
    assert "name of a model that the package brings, which are 'blocks'" in other.err
    # What lies here under that name goes before.
    tiny_model().save_pretrained("blocks")
    assert fastslots("evaluate", "blocks", "--data", images, "--device", "cpu").code == 0
    assert read("blocks-evaluation-test")["checkpoint"] == str(tmp_path / "blocks")


@pytest.mark.parametrize("make", [tiny_model, tiny_autoencoder])
def test_a_model_may_have_other_slots_and_iterations(
    fastslots: Command, images: Path, make: Any
) -> None:
    model = make()
    model.save_pretrained("model")
    options = ["--data", images, "--num-slots", 5, "--num-iterations", 4, "--device", "cpu"]
    result = fastslots("evaluate", "model", *options)
    assert result.code == 0, result.err
    assert not Path("model-evaluation-test").exists()  # which is the model's own
    report = read("model-evaluation-test-5-num_slots-4-num_iterations")
    changes = {"num_slots": 5, "num_iterations": 4}
    assert report["model"] == dataclasses.asdict(model.config) | changes
    data = DataSource(data=str(images)).open("test", 8, torch.device("cpu"))
    expected = evaluate(load_model("model", **changes), data)
    usual = evaluate(load_model("model"), data)
    name = expected.ranked_by
    assert report["metrics"][name]["mean"] == expected.means[name].mean
    assert not torch.equal(expected.scores[name], usual.scores[name])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--num-slots", "5"], "num_slots must be 3, the number of learned queries; got 5: leave"),
        (["--num-slots", "0"], "num_slots must be at least 1; got 0"),
        (["--num-slots", "2.5"], "'--num-slots'"),
        (
            ["--num-iterations", "0"],
            "num_iterations must be at least 1 with gradient='unrolled'; got",
        ),
        (["--num-iterations", "-1"], "num_iterations must be at least 0; got -1"),
        (["--num-iterations", "many"], "'--num-iterations'"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_other_slots_and_iterations_that_a_model_cannot_have_are_refused(
    fastslots: Command, images: Path, options: list[str], message: str
) -> None:
    tiny_model(slot_init="learned", gradient="unrolled").save_pretrained("model")
    result = fastslots("evaluate", "model", "--data", images, *options)
    assert result.code == 2
    assert message in result.err
    assert not Path("model-evaluation-test").exists()


def test_masks_can_be_left_out(fastslots: Command, scene_run: Path) -> None:
    assert fastslots("evaluate", scene_run, "--no-masks", "--device", "cpu").code == 0
    report = read(scene_run / "evaluation-test")
    assert report["unmeasured"] == dict.fromkeys(MASK_METRICS, "masks were not asked for")


def test_progress_is_shown_in_lines_without_a_terminal(fastslots: Command, scene_run: Path) -> None:
    result = fastslots("evaluate", scene_run, "--batch-size", 2, "--device", "cpu")
    lines = [line for line in result.out.splitlines() if line.startswith("evaluated")]
    assert lines == [f"evaluated {done}/5 images" for done in (2, 4, 5)]


@pytest.mark.filterwarnings("ignore:.*corrupt")
def test_corrupt_images_are_counted(fastslots: Command, folder_run: Path, images: Path) -> None:
    (images / "18.png").write_bytes(b"no image")
    result = fastslots("evaluate", folder_run, "--device", "cpu")
    assert result.code == 0, result.err
    assert "corrupt images left out or replaced: 1" in result.out
    assert "18.png" in result.out
    assert read(folder_run / "evaluation-test")["corrupt_images"] == 1


def test_what_was_there_is_replaced(fastslots: Command, scene_run: Path) -> None:
    assert fastslots("evaluate", scene_run, "--device", "cpu", "--seed", 0).code == 0
    assert fastslots("evaluate", scene_run, "--device", "cpu", "--seed", 1).code == 0
    assert read(scene_run / "evaluation-test")["seed"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere holds no checkpoint: expected a run folder"),
        (["run", "--split", "all"], "split must be one of ('train', 'val', 'test'); got 'all'"),
        (["run", "--images", "0"], "num_images must be from 1 to 3, all there are; got 0"),
        (["run", "--images", "4"], "num_images must be from 1 to 3, all there are; got 4"),
        (["run", "--batch-size", "0"], "batch_size must be at least 1; got 0"),
        (["run", "--masks"], "masks were asked for, but ImageFolder has none"),
        (["run", "--data", "gone"], "there is no folder"),
        (["run", "--device", "tpu"], "device must be 'auto', 'cpu', 'cuda' or 'cuda:N'; got 'tpu'"),
        (["run", "--seed", "-1"], "--seed"),
        ([], "CHECKPOINT_OR_RUN"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_names_what_is_wrong(
    fastslots: Command, folder_run: Path, arguments: list[str], message: str
) -> None:
    result = fastslots("evaluate", *arguments)
    assert result.code == 2
    assert message in result.err
    assert "Traceback" not in result.err
    assert not list(Path().rglob("evaluation*"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("checkpoints/step-000000002/model.safetensors", "x", "is no valid safetensors file"),
        ("checkpoints/step-000000002/config.json", "{", "config.json is no valid JSON"),
        ("checkpoints/step-000000002/state.json", "{", "is damaged: state.json"),
        ("checkpoints/step-000000002/state.json", "{}", "is damaged: state.json"),
        ("config.json", "{", "config.json is damaged"),
    ],
    ids=["weights", "model", "state", "state-without-step", "run"],
)
def test_a_damaged_file_is_named(
    fastslots: Command, folder_run: Path, name: str, content: str, message: str
) -> None:
    (folder_run / name).write_text(content)
    result = fastslots("evaluate", folder_run)
    assert result.code == 2
    assert message in result.err


def test_a_data_folder_that_is_gone_is_named(
    fastslots: Command, folder_run: Path, images: Path
) -> None:
    shutil.rmtree(images)
    result = fastslots("evaluate", folder_run)
    assert result.code == 2
    assert f"there is no folder '{images}'" in result.err


def test_a_model_without_a_run_needs_data(fastslots: Command) -> None:
    tiny_model().save_pretrained("model")
    result = fastslots("evaluate", "model")
    assert result.code == 2
    assert "model lies in no run whose data could be taken: give --data" in result.err


def test_an_output_that_cannot_be_written_is_named_before_the_work(
    fastslots: Command, folder_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("occupied").write_text("")

    def work(*_: object, **__: object) -> None:
        raise AssertionError("it began")

    monkeypatch.setattr("fastslots.cli.evaluate.measure", work)
    result = fastslots("evaluate", folder_run, "--output", "occupied/results")
    assert result.code == 2
    assert "occupied" in result.err


def test_a_disk_that_fills_leaves_the_earlier_results(
    fastslots: Command, folder_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fastslots("evaluate", folder_run, "--device", "cpu").code == 0
    folder = folder_run / "evaluation-test"
    before = {path: path.read_bytes() for path in folder.iterdir()}

    def full(path: Path, text: str) -> int:
        path.write_bytes(text[:10].encode())
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_text", full)
    result = fastslots("evaluate", folder_run, "--seed", 1, "--device", "cpu")
    assert result.code == 2
    assert "No space left on device" in result.err
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_the_help_lists_the_flags_of_the_data(fastslots: Command) -> None:
    result = fastslots("evaluate", "--help")
    assert result.code == 0
    for field in dataclasses.fields(DataSource):
        assert f"--{field.name.replace('_', '-')}" in result.out
