"""``fastslots train`` and ``fastslots reconstruct``."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from fastslots.cli.flags import argument_help
from fastslots.data.decoding import load_image
from fastslots.data.source import DataSource
from fastslots.models.pretrained import PretrainedModel
from fastslots.models.registry import MODELS, trainable_of
from fastslots.models.slate import SLATE
from fastslots.training.validation import draw
from tests.cli.conftest import Command
from tests.cli.test_evaluate_command import SCENES, tiny_autoencoder, write_run
from tests.training.runs import signal_at
from tests.training.tiny import TINY_FLAGS, tiny_model

SMALL = [*TINY_FLAGS, "--batch-size", "4", "--validation-images", "2"]


@pytest.fixture
def run(fastslots: Command, images: Path) -> Path:
    result = fastslots("train", "--data", images, "--output", "run", "--steps", 2, *SMALL)
    assert result.code == 0, result.err
    return Path("run")


def test_train_writes_the_run_folder(run: Path) -> None:
    config = json.loads((run / "config.json").read_text())
    assert config["model"]["d_model"] == 8
    assert config["recipe"]["steps"] == 2
    assert config["data"]["data"].endswith("images")
    assert (run / "metrics.jsonl").stat().st_size > 0
    assert list((run / "samples").glob("*.png"))
    assert (run / "checkpoints" / "step-000000002" / "model.safetensors").is_file()


def test_train_on_the_scenes_resumes_with_its_own_settings(fastslots: Command) -> None:
    scenes = ["--num-scenes", 8, "--max-objects", 4, "--no-mirror"]
    first = fastslots("train", "--output", "run", "--steps", 1, *scenes, *SMALL)
    assert first.code == 0, first.err
    second = fastslots("train", "--resume", "run", "--steps", 2, "--device", "cpu")
    assert second.code == 0, second.err
    assert "run/checkpoints/step-000000002" in second.out


def test_reconstruct_draws_panels_for_any_images(
    fastslots: Command, run: Path, images: Path
) -> None:
    Image.open(images / "00.png").convert("L").save("gray.jpg")
    result = fastslots("reconstruct", images / "01.png", "gray.jpg", "--model", run)
    assert result.code == 0, result.err
    with Image.open("reconstruction.png") as picture:
        assert picture.width > 4 * 90
        assert picture.height > 2 * 90


def test_reconstruct_is_decided_by_the_seed(fastslots: Command, run: Path, images: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        options = ["--model", run, "--output", f"{name}.png", "--seed", seed]
        assert fastslots("reconstruct", images / "01.png", *options).code == 0
    a, b, c = (Path(f"{name}.png").read_bytes() for name in "abc")
    assert a == b != c


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("make", [tiny_model, tiny_autoencoder])
def test_reconstruct_draws_what_a_run_of_that_kind_does(
    fastslots: Command,
    images: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    make: Callable[[], PretrainedModel],
    dtype: torch.dtype,
) -> None:
    monkeypatch.setattr("fastslots.models.pretrained.SHIPPED", tmp_path / "shipped")
    model = make().to(dtype)
    model.save_pretrained(tmp_path / "shipped" / "blocks")
    paths = [images / "01.png", images / "02.png"]
    result = fastslots("reconstruct", *paths, "--model", "blocks", "--device", "cpu")
    assert result.code == 0, result.err
    batch = torch.stack([load_image(path, 8) for path in paths]).to(dtype)
    draw(trainable_of(model), batch, Path("expected.png"), seed=0)
    assert Path("reconstruction.png").read_bytes() == Path("expected.png").read_bytes()


def test_the_help_of_reconstruct_has_the_columns_of_both_kinds(fastslots: Command) -> None:
    text = " ".join(fastslots("reconstruct", "--help").out.split())
    assert "SLATE: image | dVAE | through the slots | segments" in text
    assert "autoencoder: image | reconstruction | masks | attention" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "0"], "steps must be at least 1; got 0"),
        (["--steps", "many"], "'--steps'"),
        (
            ["--accumulation", "3"],
            "batch_size must be divisible by processes x accumulation, 1 x 3",
        ),
        (["--precision", "half"], "precision must be one of ('float32', 'bf16', 'float64')"),
        (["--no-clip", "--clip", "2"], "--clip and --no-clip exclude each other; got --clip 2.0"),
        (["--no-warmup", "--warmup-steps", "5"], "--warmup-steps and --no-warmup exclude each"),
        (["--no-decay", "--patience", "3"], "--patience and --no-decay exclude each other"),
        (["--workers", "-1"], "'--workers'"),
        (["--iterations", "3"], "No such option: --iterations"),
        (["--d-model", "10", "--num-decoder-heads", "4"], "d_model must be a multiple of"),
        (["--gradient", "bptt"], "gradient must be one of"),
        (["--device", "tpu"], "device must be 'auto', 'cpu', 'cuda' or 'cuda:N'; got 'tpu'"),
        (["--settings", "tiny"], "settings must be one of ('auto', 'cpu', 'gpu'); got 'tiny'"),
        (["--data", "nowhere"], "data must be 'scenes' or a folder of images; there is no folder"),
        (["--resume", "nowhere", "--settings", "gpu"], "resume takes model, data, settings and"),
        (["--lr-main", "inf"], "lr_main must be above 0 and finite; got inf"),
        (["--resume", "nowhere"], "nowhere holds no run: it has no config.json"),
        (
            ["--resume", "nowhere", "--output", "other", "--d-model", "8"],
            "folder from the run; got --output, --d-model: leave that out",
        ),
        (["--max-objects", "99"], "max_objects"),
    ],
    ids=lambda value: "".join(value[:2]) if isinstance(value, list) else "",
)
def test_train_names_what_is_wrong(fastslots: Command, arguments: list[str], message: str) -> None:
    result = fastslots("train", *arguments)
    assert result.code == 2
    assert message in result.err
    assert "Traceback" not in result.err
    assert not Path("runs").exists()


def test_a_cuda_device_that_is_not_there_is_named(
    fastslots: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    result = fastslots("train", "--device", "cuda")
    assert result.code == 2
    assert "device 'cuda' is not there: PyTorch sees 0 CUDA devices" in result.err


def test_train_does_not_touch_another_run(fastslots: Command, run: Path, images: Path) -> None:
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    result = fastslots("train", "--data", images, "--output", run, "--steps", 2, *SMALL)
    assert result.code == 2
    assert (
        "run holds a run already: choose another --output, or go on with: fastslots train --resume run"
        in result.err
    )
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before


def test_a_damaged_config_is_named(fastslots: Command, run: Path) -> None:
    (run / "config.json").write_text('{"model": {}')
    result = fastslots("train", "--resume", run)
    assert result.code == 2
    assert "run/config.json is damaged" in result.err


@pytest.mark.parametrize("output", ["images", "images/run"])
def test_a_run_among_its_images_is_refused(fastslots: Command, images: Path, output: str) -> None:
    before = sorted(images.iterdir())
    result = fastslots("train", "--data", images, "--output", output, *SMALL)
    assert result.code == 2
    assert (
        "output must lie outside of the data folder, whose images its pictures would" in result.err
    )
    write_run(Path("run"), DataSource(data=str(images)))
    result = fastslots("evaluate", "run", "--output", output, "--device", "cpu")
    assert "output must lie outside of the data folder" in result.err
    assert sorted(images.iterdir()) == before


def test_an_output_that_is_a_file_is_named(fastslots: Command, images: Path) -> None:
    Path("occupied").write_text("")
    result = fastslots("train", "--data", images, "--output", "occupied/run", *SMALL)
    assert result.code == 2
    assert (
        "output must be a folder that can be made and written to; got 'occupied/run'" in result.err
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.png", "--model", "run"], "missing.png"),
        (["corrupt.png", "--model", "run"], "corrupt.png"),
        (
            ["images", "--model", "run"],
            "IMAGE must be a PNG or JPEG file; got 'images', which",
        ),
        (["images/00.png", "--model", "nowhere"], "nowhere holds no checkpoint"),
        (
            ["images/00.png", "--model", "run", "--output", "run/../images/00.png"],
            "output must be another file than the images; got 'run/../images/00.png'",
        ),
        (
            ["images/00.png", "--model", "run", "--output", "corrupt.png/a.png"],
            "output must be a folder that can be made and written to; got 'corrupt.png'",
        ),
        (
            ["images/00.png", "--model", "run", "--output", "a.gif"],
            "output must be a PNG file",
        ),
        (["--model", "run"], "IMAGE"),
    ],
)
def test_reconstruct_names_what_is_wrong(
    fastslots: Command, run: Path, arguments: list[str], message: str
) -> None:
    Path("corrupt.png").write_bytes(b"no image")
    result = fastslots("reconstruct", *arguments)
    assert result.code == 2
    assert message in result.err
    assert "Traceback" not in result.err


def test_an_interrupted_run_can_go_on(
    fastslots: Command, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ["--data", images, "--output", "run", "--steps", 4, *SMALL]
    with monkeypatch.context() as patch:
        signal_at(2, patch, SLATE, "forward")
        result = fastslots("train", *options)
    assert result.code == 130
    assert "interrupted; go on with: fastslots train --resume run" in result.err
    again = fastslots("train", "--resume", "run", "--device", "cpu")
    assert again.code == 0, again.err
    assert Path("run/checkpoints/step-000000004").is_dir()


def test_switches_stand_for_numbers(fastslots: Command, images: Path) -> None:
    switches = ["--no-clip", "--no-warmup", "--no-decay"]
    at = SMALL.index("--decay")
    options = ["--data", images, "--output", "run", *SMALL[:at], *SMALL[at + 2 :], *switches]
    result = fastslots("train", *options, "--steps", 2, "--log-every", 1, "--gradient", "unrolled")
    assert result.code == 0, result.err
    config = json.loads(Path("run/config.json").read_text())
    recipe = config["recipe"]
    assert (recipe["clip"], recipe["warmup_steps"], recipe["patience"]) == (math.inf, 0, 0)
    assert recipe["decay"] == "none"
    assert config["model"]["gradient"] == "unrolled"
    first = json.loads(Path("run/metrics.jsonl").read_text().splitlines()[0])
    assert first["lr_main"] == recipe["lr_main"]
    again = fastslots("train", "--resume", "run", "--steps", 4, "--no-decay", "--device", "cpu")
    assert again.code == 0, again.err


@pytest.mark.filterwarnings("ignore:.*corrupt", "ignore:.*the next image replaces")
@pytest.mark.parametrize("workers", [0, 2])
def test_corrupt_images_are_counted_at_the_end(
    fastslots: Command, images: Path, workers: int
) -> None:
    whole = (images / "03.png").read_bytes()
    (images / "03.png").write_bytes(whole[: len(whole) // 2])
    for name in ("05.png", "15.png"):
        (images / name).write_bytes(b"no image")
    arguments = ["--data", images, "--output", "run", "--steps", 6, "--workers", workers, *SMALL]
    result = fastslots("train", *arguments)
    assert result.code == 0, result.err
    corrupt = ", ".join(str(images / name) for name in ("03.png", "05.png", "15.png"))
    assert f"corrupt images left out or replaced: 3 ({corrupt})" in result.out
    strict = fastslots("train", *arguments, "--strict", "--output", "strict")
    assert strict.code == 2
    assert "05.png" in strict.err


def test_what_is_changed_on_resuming_stays_changed(fastslots: Command, run: Path) -> None:
    assert fastslots("train", "--resume", run, "--steps", 4, "--device", "cpu").code == 0
    assert json.loads((run / "config.json").read_text())["recipe"]["steps"] == 4


def test_a_run_can_be_resumed_from_another_folder(
    fastslots: Command, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = fastslots("train", "--data", images.name, "--output", "run", "--steps", 1, *SMALL)
    assert first.code == 0, first.err
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    second = fastslots("train", "--resume", tmp_path / "run", "--steps", 2, "--device", "cpu")
    assert second.code == 0, second.err


@pytest.fixture
def written(fastslots: Command) -> Path:
    """A run that was not trained."""
    return write_run(Path("run"), SCENES).parent.parent


def test_a_config_that_sets_a_name_twice_is_refused(fastslots: Command, written: Path) -> None:
    text = (written / "config.json").read_text()
    (written / "config.json").write_text(text.replace('"lr_main"', '"lr_main": 1, "lr_main"'))
    result = fastslots("train", "--resume", written)
    assert result.code == 2
    assert "run/config.json is damaged: 'lr_main' must stand in it once; got it twice" in result.err


@pytest.mark.parametrize(
    ("group", "changes", "message"),
    [
        ("recipe", {"lr_main": "x"}, "config.json, recipe: lr_main must be a number; got 'x'"),
        ("recipe", {"steps": None}, "config.json, recipe: steps must be an int; got None"),
        (
            "recipe",
            {"lr_main": math.nan},
            "config.json, recipe: lr_main must be above 0 and finite; got nan",
        ),
        ("model", {"d_model": 8.5}, "config.json, model: d_model must be an int; got 8.5"),
        ("data", {"cache": 5}, "config.json, data: cache must be a str or None; got 5"),
        ("data", {"data": ["a"]}, "config.json, data: data must be a str; got ['a']"),
        ("data", {"strict": "yes"}, "config.json, data: strict must be True or False; got 'yes'"),
        ("model", {"colour": 1}, "config.json, model must hold no other settings; got colour: rem"),
        ("data", {"num_scene": 3}, "config.json, data must hold no other settings; got num_scene"),
        (
            "recipe",
            {"clip": ...},
            "config.json, recipe must hold all settings; got none called clip (usually 1.0): add what",
        ),
    ],
    ids=lambda value: "".join(value) if isinstance(value, dict) else "",
)
@pytest.mark.parametrize("command", [["train", "--resume", "run"], ["evaluate", "run"]])
def test_a_setting_that_makes_no_sense_is_named(
    fastslots: Command,
    written: Path,
    command: list[str],
    group: str,
    changes: dict[str, object],
    message: str,
) -> None:
    config = json.loads((written / "config.json").read_text())
    config[group] = {n: v for n, v in (config[group] | changes).items() if v is not ...}
    (written / "config.json").write_text(json.dumps(config))
    result = fastslots(*command, "--device", "cpu")
    assert result.code == 2
    assert f"run/{message}" in result.err


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ([], "config.json must be an object; got []"),
        ({"model": {}, "recipe": {}}, "config.json must hold all settings; got none called data"),
        ({"model": [], "recipe": {}, "data": {}}, "config.json, model must be an object; got []"),
        ({"model": 0, "rec": 0, "data": 0}, "config.json must hold no other settings; got rec:"),
    ],
    ids=["list", "missing", "no-object", "unknown"],
)
def test_a_config_that_is_none_is_named(
    fastslots: Command, written: Path, config: object, message: str
) -> None:
    (written / "config.json").write_text(json.dumps(config))
    result = fastslots("train", "--resume", written)
    assert result.code == 2
    assert f"run/{message}" in result.err


def test_what_lies_in_a_run_is_not_taken_for_one(
    fastslots: Command, run: Path, tmp_path: Path
) -> None:
    assert fastslots("train", "--resume", run, "--steps", 4, "--device", "cpu").code == 0
    advice = f"which lies in one: fastslots train --resume {tmp_path / run} goes on from its last"
    for inner in ("checkpoints", "checkpoints/step-000000004", "checkpoints/step-000000002"):
        result = fastslots("train", "--resume", run / inner)
        assert result.code == 2
        assert f"its own folder; got run/{inner}, {advice} checkpoint, of step 4" in result.err
    later = tmp_path / run / "checkpoints"
    assert f"to go on from step-000000002, first move the later ones out of {later}" in result.err
    shutil.copytree(run / "checkpoints" / "step-000000002", "model")
    result = fastslots("train", "--resume", "model")
    assert "model holds no run: it is a model, not the folder of a run" in result.err


def test_every_flag_is_explained_in_the_help(fastslots: Command) -> None:
    result = fastslots("train", "--help")
    assert result.code == 0
    for kind in MODELS.values():
        helps = argument_help(kind.config) | argument_help(kind.recipe)
        del helps["image_channels"]
        for name, text in helps.items():
            assert f"--{name.replace('_', '-')}" in result.out
            assert text.split(";")[0][:30] in result.out
    assert (
        "slate: Tokens the dVAE chooses from, V. (default: slate 4096, on a CPU 64)" in result.out
    )
    assert "(default: slate 6, on a CPU 5; autoencoder 7, on a CPU 5)" in result.out
    assert "Terms of the Neumann series. (default: 1)" in result.out
    for switch in ("--no-clip", "--no-warmup", "--no-decay", "--no-compile"):
        assert switch in result.out
    assert "torchrun --nproc-per-node" in result.out


@pytest.mark.slow
def test_the_module_runs_as_a_program() -> None:
    command = [sys.executable, "-m", "fastslots", "--help"]
    environment = os.environ | {"COLUMNS": "200"}
    result = subprocess.run(
        command, capture_output=True, text=True, env=environment, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr
    assert all(name in result.stdout for name in ("train", "reconstruct"))


@pytest.mark.slow
def test_without_the_extra_the_command_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "typer.py").write_text("raise ModuleNotFoundError(name='typer')\n")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, "-m", "fastslots", "train"],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
        check=False,
    )
    assert result.returncode == 2
    assert 'pip install "fastslots[train]"' in result.stderr
