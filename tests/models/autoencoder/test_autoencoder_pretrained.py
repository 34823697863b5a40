"""Saved models of several kinds: each by its own class, all by their folder or their name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from fastslots.models import pretrained
from fastslots.models.autoencoder import SlotAutoencoder, TrainableSlotAutoencoder
from fastslots.models.registry import MODELS, load_model, trainable_of
from fastslots.models.slate import SLATE, TrainableSLATE
from fastslots.noise import sample_keys
from tests.models.autoencoder.small_autoencoders import (
    PATCHES,
    initial_slots,
    small_model,
    whitened_model,
)
from tests.models.slate import small_models as slate
from tests.models.slate.small_models import images

KEYS = sample_keys(range(2), 0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "autoencoder"
    small_model(**PATCHES, gradient="neumann").save_pretrained(path)
    return path


@pytest.fixture
def slate_folder(tmp_path: Path) -> Path:
    path = tmp_path / "slate"
    slate.small_model().save_pretrained(path)
    return path


def change(folder: Path, **settings: Any) -> None:
    """Writes other settings, or takes away those that are None."""
    path = folder / "config.json"
    changed = json.loads(path.read_text()) | settings
    path.write_text(json.dumps({n: value for n, value in changed.items() if value is not None}))


@pytest.mark.parametrize("settings", [{}, PATCHES, {"slot_init": "learned"}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
def test_an_autoencoder_comes_back_to_the_bit(
    tmp_path: Path, dtype: torch.dtype, settings: dict[str, Any]
) -> None:
    model = whitened_model(dtype, **settings)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["kind"] == "SlotAutoencoder"
    for loaded in (SlotAutoencoder.from_pretrained(tmp_path), load_model(tmp_path)):
        assert isinstance(loaded, SlotAutoencoder)
        assert not loaded.training
        assert loaded.config == model.config
        assert loaded.dtype == loaded.whitening.mean.dtype == dtype
        image = images(2).to(dtype)
        assert all(map(torch.equal, loaded(image, KEYS), model(image, KEYS)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_the_default_dtype_changes_no_loaded_autoencoder(
    folder: Path, default_dtype, dtype: torch.dtype
) -> None:
    expected = SlotAutoencoder.from_pretrained(folder)(images(2), KEYS)
    default_dtype(dtype)
    loaded = SlotAutoencoder.from_pretrained(folder)
    assert all(map(torch.equal, loaded(images(2), KEYS), expected))


def test_a_model_of_another_kind_is_named_with_what_reads_it(
    folder: Path, slate_folder: Path
) -> None:
    message = (
        "holds a model of kind 'SLATE'; got it read as 'SlotAutoencoder': "
        "read it with SLATE.from_pretrained"
    )
    with pytest.raises(ValueError, match=message):
        SlotAutoencoder.from_pretrained(slate_folder)
    with pytest.raises(
        ValueError, match=r"'SlotAutoencoder'; got it .* with SlotAutoencoder.from_"
    ):
        SLATE.from_pretrained(folder)


def test_a_folder_of_a_kind_that_there_is_not_is_named(folder: Path) -> None:
    change(folder, kind="VAE")
    with pytest.raises(ValueError, match=r"must hold .* of kind SLATE, SlotAutoencoder; got 'VAE'"):
        load_model(folder)
    with pytest.raises(ValueError, match="holds a model of kind 'VAE'; got it read as 'SlotAuto"):
        SlotAutoencoder.from_pretrained(folder)


def test_a_slate_of_earlier_versions_which_wrote_no_kind_is_read(slate_folder: Path) -> None:
    missing = ("kind", "whiten", "draw_tokens", "position_init")
    change(slate_folder, **dict.fromkeys(missing))
    assert not set(missing) & json.loads((slate_folder / "config.json").read_text()).keys()
    for loaded in (load_model(slate_folder), SLATE.from_pretrained(slate_folder)):
        assert isinstance(loaded, SLATE)
        assert torch.equal(loaded.out.weight, slate.small_model().out.weight)
        assert loaded.config == slate.small_config()
    with pytest.raises(ValueError, match=r"misses whitening\.mean.*, .* saved with whiten=False$"):
        SLATE.from_pretrained(slate_folder, whiten=True)
    with pytest.raises(
        ValueError, match=r"of kind 'SLATE'; .*: read it with SLATE\.from_pretrained"
    ):
        SlotAutoencoder.from_pretrained(slate_folder)


def test_every_kind_is_read_by_its_folder_and_has_its_glue(
    folder: Path, slate_folder: Path
) -> None:
    assert isinstance(trainable_of(load_model(folder)), TrainableSlotAutoencoder)
    assert isinstance(trainable_of(load_model(slate_folder)), TrainableSLATE)
    assert len({known.model.kind for known in MODELS.values()}) == len(MODELS)


def test_settings_may_be_others_than_the_saved_ones(folder: Path) -> None:
    saved = SlotAutoencoder.from_pretrained(folder)
    given = {"num_iterations": 7, "num_slots": 9, "backend": "reference"}
    for model in (SlotAutoencoder.from_pretrained(folder, **given), load_model(folder, **given)):
        assert {name: getattr(model.config, name) for name in given} == given
        assert model(images(2), KEYS).masks.shape[1] == 9
        guess = initial_slots().float()
        unrolled = SlotAutoencoder.from_pretrained(folder, gradient="unrolled", num_iterations=8)
        torch.testing.assert_close(
            model.encode(images(2), guess), unrolled.encode(images(2), guess)
        )
        assert all(map(torch.equal, model.state_dict().values(), saved.state_dict().values()))
    assert json.loads((folder / "config.json").read_text())["num_slots"] == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"num_slots": 9},
            "num_slots must be 3, the number of learned queries; got 9: leave it out, or train a model with ",
        ),
        (
            {"slot_init": "gaussian", "num_iterations": 2},
            "misses .*slot_mu.*must fit .*, which were saved with slot_init='learned', num_iterations=3$",
        ),
        (
            {"image_size": 32},
            r"misshaped whitening.mean .*, which were saved with image_size=16$",
        ),
        (
            {"slots": 4},
            "settings must be of SlotAutoencoderConfig; got slots, which is none of ima",
        ),
        ({"num_iterations": "7"}, "num_iterations must be an int; got '7'"),
        ({"num_slots": 0}, "num_slots must be at least 1; got 0"),
        ({"kind": "SLATE"}, "settings must be of SlotAutoencoderConfig; got kind, which is none"),
    ],
)
def test_settings_that_do_not_fit_the_weights_are_named(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    small_model(slot_init="learned").save_pretrained(tmp_path)
    with pytest.raises((TypeError, ValueError), match=message):
        load_model(tmp_path, **settings)


def test_weights_that_do_not_fit_their_own_settings_are_said_to_be_of_another_model(
    folder: Path,
) -> None:
    change(folder, width=9)
    with pytest.raises(ValueError, match=r"config.json and model.safetensors must be of one model"):
        load_model(folder)


@pytest.fixture
def shipped(folder: Path, slate_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two models that come with the package."""
    path = folder.parent / "shipped"
    shutil.copytree(folder, path / "autoencoder-scenes")
    shutil.copytree(slate_folder, path / "slate-scenes")
    monkeypatch.setattr(pretrained, "SHIPPED", path)
    monkeypatch.chdir(folder.parent)
    return path


@pytest.mark.usefixtures("shipped")
def test_models_that_come_with_the_package_are_read_by_their_names() -> None:
    assert pretrained.shipped_models() == ["autoencoder-scenes", "slate-scenes"]
    assert isinstance(load_model("autoencoder-scenes", num_slots=5), SlotAutoencoder)
    assert isinstance(load_model(Path("slate-scenes")), SLATE)
    assert isinstance(SLATE.from_pretrained("slate-scenes"), SLATE)
    with pytest.raises(ValueError, match="kind 'SLATE'; got it read as 'SlotAutoencoder'"):
        SlotAutoencoder.from_pretrained("slate-scenes")


@pytest.mark.usefixtures("shipped")
def test_a_folder_here_that_holds_a_model_goes_before_one_of_the_package() -> None:
    here = Path("autoencoder-scenes")
    here.mkdir()
    assert load_model(here).config.num_slots == 3  # an empty folder holds none
    small_model(**PATCHES, num_slots=4).save_pretrained(here)
    assert load_model(here).config.num_slots == 4
    assert load_model("./autoencoder-scenes").config.num_slots == 4


@pytest.mark.usefixtures("shipped")
def test_a_name_that_there_is_not_is_named_with_those_that_there_are() -> None:
    message = "no folder 'clevr' to .*; the package brings 'autoencoder-scenes', 'slate-scenes'$"
    with pytest.raises(FileNotFoundError, match=message):
        load_model("clevr")


def test_a_package_without_models_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrained, "SHIPPED", tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="the package brings none"):
        load_model(tmp_path / "absent")
