"""``fastslots segment``."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from fastslots.cli.segment import _label
from fastslots.data.decoding import load_image
from fastslots.models.autoencoder import SlotAutoencoder
from fastslots.models.registry import trainable_of
from fastslots.models.slate import SLATE
from fastslots.pictures import label_map
from fastslots.training.validation import draw, validation_keys
from tests.cli.conftest import Command
from tests.cli.test_evaluate_command import SCENES, tiny_autoencoder, write_run
from tests.training.tiny import tiny_model


def slate() -> SLATE:
    """Tiny, with weights so large that attention differs from token to token."""
    model = tiny_model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return model


Make = Callable[[], SLATE | SlotAutoencoder]
KINDS = pytest.mark.parametrize("make", [slate, tiny_autoencoder])


@pytest.fixture(autouse=True)
def shipped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where the package brings its models: a tiny one called scenes."""
    folder = tmp_path / "shipped"
    monkeypatch.setattr("fastslots.models.pretrained.SHIPPED", folder)
    tiny_autoencoder().save_pretrained(folder / "scenes")
    return folder


def labels(path: Path | str) -> Tensor:
    with Image.open(path) as picture:
        assert (picture.format, picture.mode) == ("PNG", "P")
        pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
        return pixels.view(picture.height, picture.width)


@KINDS
@pytest.mark.parametrize("seed", [0, 3])
def test_a_label_map_has_the_slot_of_every_pixel_in_the_colours_of_pictures(
    fastslots: Command, images: Path, make: Make, seed: int
) -> None:
    model = make()
    model.save_pretrained("model")
    paths = [images / f"{index:02d}.png" for index in range(3)]
    options = ["--model", "model", "--seed", seed, "--device", "cpu", "--output", "out"]
    result = fastslots("segment", *paths, *options)
    assert result.code == 0, result.err
    names = ["00.png", "01.png", "02.png", "overview.png"]
    assert sorted(path.name for path in Path("out").iterdir()) == names
    assert "wrote 3 label maps and overview.png to out" in result.out
    model.eval()
    found = []
    for path in paths:
        with torch.no_grad():
            image = load_image(path, 8).unsqueeze(0)
            expected = model.segment(image, keys=validation_keys(0, 1, seed))[0]
        actual = labels(Path("out") / path.name)
        assert torch.equal(actual, expected.to(torch.uint8))
        with Image.open(Path("out") / path.name) as picture:
            colours = picture.convert("RGB").tobytes()
        assert colours == label_map(expected, 3).convert("RGB").tobytes()
        found.append(actual)
    assert len(torch.stack(found).unique()) > 1


@KINDS
def test_the_overview_has_the_panels_of_a_reconstruction(
    fastslots: Command, images: Path, make: Make
) -> None:
    model = make()
    model.save_pretrained("model")
    result = fastslots("segment", images / "01.png", "--model", "model", "--device", "cpu")
    assert result.code == 0, result.err
    draw(trainable_of(model), load_image(images / "01.png", 8).unsqueeze(0), Path("row.png"), 0)
    with Image.open("segments/overview.png") as overview, Image.open("row.png") as row:
        labels_width = overview.width - row.width
        assert labels_width > 12  # 01
        area = (labels_width + 12, 0, overview.width, overview.height)
        assert overview.crop(area).tobytes() == row.crop((12, 0, *row.size)).tobytes()


def test_an_image_has_the_same_slots_alone_and_among_many(
    fastslots: Command, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastslots.cli.segment.AT_A_TIME", 3)
    monkeypatch.setattr("fastslots.cli.segment.MOST_ROWS", 4)
    paths = sorted(images.iterdir())[:8]
    together = fastslots("segment", *paths, "--device", "cpu", "--output", "together")
    assert together.code == 0, together.err
    assert "wrote 8 label maps and overview.png of the first 4 to together" in together.out
    with Image.open("together/overview.png") as picture:
        assert picture.height == 32 + 4 * 132 - 4 + 12
    for path in paths:
        assert fastslots("segment", path, "--device", "cpu", "--output", "alone").code == 0
        assert torch.equal(labels(Path("alone") / path.name), labels(Path("together") / path.name))


def test_the_model_may_be_a_run_and_is_one_of_the_package_otherwise(
    fastslots: Command, images: Path
) -> None:
    write_run(Path("run"), SCENES)
    for name, options in (("run", ["--model", "run"]), ("scenes", [])):
        out = ["--output", name + "-out", "--device", "cpu"]
        result = fastslots("segment", images / "00.png", *options, *out)
        assert result.code == 0, result.err
    names = ("run-out/overview.png", "scenes-out/overview.png")
    with Image.open(names[0]) as of_slate, Image.open(names[1]) as of_autoencoder:
        assert of_slate.size == of_autoencoder.size
        assert of_slate.tobytes() != of_autoencoder.tobytes()


def test_a_larger_image_leaves_a_map_of_the_models_size_and_the_help_says_so(
    fastslots: Command, images: Path
) -> None:
    with Image.open(images / "00.png") as picture:
        picture.resize((40, 30)).save("large.jpg")
    assert fastslots("segment", "large.jpg", "--device", "cpu").code == 0
    assert labels("segments/large.png").shape == (8, 8)
    text = " ".join(fastslots("segment", "--help").out.split())
    assert "It has the model's size, to which images are resized, larger ones too" in text


def test_what_was_there_is_replaced(fastslots: Command, images: Path) -> None:
    for _ in range(2):
        assert fastslots("segment", images / "00.png", "--device", "cpu").code == 0
    assert sorted(path.name for path in Path("segments").iterdir()) == ["00.png", "overview.png"]


def test_a_label_is_one_short_line() -> None:
    assert _label(Path("a\n\x07\udcffb.png")) == "a???b"
    assert _label(Path("exactly-20-letters-x.png")) == "exactly-20-letters-x"
    assert _label(Path("one-more-than-20-long.png")) == "one-more-than-20-..."


def test_names_of_any_length_and_letters_stand_in_the_overview(
    fastslots: Command, images: Path
) -> None:
    names = ["a\n\x07b", 50 * "long"]
    for place in names:
        shutil.copy(images / "00.png", f"{place}.png")
    result = fastslots(
        "segment",
        "--model",
        "scenes",
        *(f"{place}.png" for place in names),
        "--device",
        "cpu",
        "--output",
        "o",
    )
    assert result.code == 0, result.err
    with Image.open("o/overview.png") as picture:
        assert picture.width < 12 + 7 * 132 + 12 + 250


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["images/00.png", "other/00.jpg"],
            "IMAGE must be files whose names differ before their endings; got 'images/00.png' and "
            "'other/00.jpg', both of which would become 00.png: rename one",
        ),
        (
            ["images/A.png", "images/a.png"],
            "got 'images/A.png' and 'images/a.png', both of which would become a.png",
        ),
        (["images/00.png", "images/00.png"], "got 'images/00.png' and 'images/00.png', both of"),
        (
            ["other/overview.jpg"],
            "IMAGE must be called otherwise than overview; got 'other/overview.jpg', whose label map",
        ),
        (
            ["images/00.png", "--output", "other/../images"],
            "output must be a folder without the images, which would be replaced; got "
            "'other/../images', where 00.png lies: name another",
        ),
        (
            ["missing.png"],
            "IMAGE must be a PNG or JPEG file; got 'missing.png', which does not exist",
        ),
        (["images"], "IMAGE must be a PNG or JPEG file; got 'images', which is a folder"),
        (["images/00.png", "corrupt.png"], "corrupt.png"),
        (
            ["images/00.png", "--model", "nowhere"],
            "nowhere holds no checkpoint: expected a run folder, or a folder with config.json and "
            "model.safetensors, or the name of a model that the package brings, which are 'scenes'",
        ),
        (["images/00.png", "--output", "corrupt.png"], "output must be a folder that can be made"),
        (["images/00.png", "--device", "tpu"], "device must be 'auto', 'cpu', 'cuda' or 'cuda:N'"),
        (["images/00.png", "--seed", "-1"], "--seed"),
        ([], "IMAGE"),
    ],
    ids=lambda value: "-".join(value).replace("/", "") if isinstance(value, list) else "",
)
def test_names_what_is_wrong_before_anything_is_made(
    fastslots: Command, images: Path, arguments: list[str], message: str
) -> None:
    Path("other").mkdir()
    Path("corrupt.png").write_bytes(b"no image")
    for copy in ("other/00.jpg", "other/overview.jpg", "images/a.png", "images/A.png"):
        shutil.copy(images / "00.png", copy)
    before = {path: path.is_file() and path.read_bytes() for path in Path().rglob("*")}
    result = fastslots("segment", *arguments)
    assert result.code == 2
    assert message in result.err
    assert "Traceback" not in result.err
    assert {path: path.is_file() and path.read_bytes() for path in Path().rglob("*")} == before


def test_a_package_without_models_says_so(fastslots: Command, images: Path, shipped: Path) -> None:
    shutil.rmtree(shipped)
    result = fastslots("segment", images / "00.png")
    assert result.code == 2
    assert "scenes holds no checkpoint" in result.err
    assert "name of a model that the package brings, which are none" in result.err


@KINDS
def test_a_model_that_gives_no_finite_numbers_leaves_no_maps(
    fastslots: Command, images: Path, make: Make
) -> None:
    model = make()
    for parameter in model.parameters():
        parameter.data.fill_(torch.nan)
    model.save_pretrained("model")
    result = fastslots("segment", images / "00.png", "--model", "model", "--device", "cpu")
    assert result.code == 2
    assert "NaN" in result.err
    assert not list(Path("segments").iterdir())


def test_a_full_disk_leaves_the_earlier_maps(
    fastslots: Command, images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [images / "00.png", images / "01.png"]
    assert fastslots("segment", *paths, "--device", "cpu").code == 0
    before = {path: path.read_bytes() for path in Path("segments").iterdir()}
    save, calls = Image.Image.save, []

    def full(picture: Image.Image, file: Path, **options: object) -> None:
        calls.append(file)
        if len(calls) == 2:
            raise OSError(28, "No space left on device", str(file))
        save(picture, file, **options)

    monkeypatch.setattr(Image.Image, "save", full)
    result = fastslots("segment", *paths, "--seed", 5, "--device", "cpu")
    assert result.code == 2
    assert "No space left on device" in result.err
    assert {path: path.read_bytes() for path in Path("segments").iterdir()} == before
