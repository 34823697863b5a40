"""Saving and loading models."""

import json
import os
import shutil

import pytest
import torch

from fastslots.models.slate import SLATE
from tests.models.slate.small_models import images, small_config, small_model


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "models" / "slate"
    small_model().save_pretrained(path)
    return path


def settings_of(folder):
    return json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_loads_what_was_saved_to_the_bit(tmp_path, dtype):
    model = small_model(num_slot_heads=2, slot_init="learned").to(dtype)
    model.save_pretrained(tmp_path)
    loaded = SLATE.from_pretrained(tmp_path)
    assert loaded.config == model.config
    assert loaded.out.weight.dtype == dtype
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_the_default_dtype_changes_no_loaded_model(folder, default_dtype, dtype):
    def results():
        model = SLATE.from_pretrained(folder).train()
        keys = torch.full((2, 2), 7, dtype=torch.int32)
        output = model(images(2), keys=keys)
        return [*output, model.reconstruct(images(2), keys=keys)]

    expected = results()
    default_dtype(dtype)
    for result, value in zip(results(), expected, strict=True):
        assert torch.equal(result, value)
    assert SLATE(small_config()).out.weight.dtype == dtype


def test_writes_two_readable_files_and_no_pickle(folder):
    assert sorted(os.listdir(folder)) == ["config.json", "model.safetensors"]
    assert settings_of(folder)["num_slots"] == 3
    assert b"pickle" not in (folder / "model.safetensors").read_bytes()[:2000]


def test_replaces_an_earlier_model(folder):
    model = small_model(seed=1, num_slots=4)
    model.save_pretrained(folder)
    assert SLATE.from_pretrained(folder).config.num_slots == 4
    assert sorted(os.listdir(folder)) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize("failing_write", [1, 2])
def test_a_full_disk_leaves_the_earlier_model(folder, monkeypatch, failing_write):
    before = {name: (folder / name).read_bytes() for name in os.listdir(folder)}
    assert len(before) == 2
    calls = []

    def fsync(descriptor):
        calls.append(descriptor)
        if len(calls) == failing_write:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="No space left"):
        small_model(seed=1, num_slots=4).save_pretrained(folder)
    assert {name: (folder / name).read_bytes() for name in os.listdir(folder)} == before


def test_tied_weights_are_saved_each_on_its_own(folder):
    model = small_model()
    first, second = model.tf_dec.blocks[:2]
    second.ffn = first.ffn
    model.out.weight = torch.nn.Parameter(model.dictionary.dictionary.weight[1:])  # a part, shared
    model.save_pretrained(folder)
    loaded = SLATE.from_pretrained(folder)
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_refuses_to_save_a_model_without_values(folder):
    before = (folder / "model.safetensors").read_bytes()
    with pytest.raises(
        ValueError, match=r"must have values to be saved; got .* on the meta device"
    ):
        small_model().to("meta").save_pretrained(folder)
    assert (folder / "model.safetensors").read_bytes() == before


def test_refuses_to_load_onto_the_meta_device(folder):
    with (
        torch.device("meta"),
        pytest.raises(ValueError, match=r"load it outside of torch.device"),
    ):
        SLATE.from_pretrained(folder)


def test_refuses_to_write_into_a_file(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(OSError, match="taken"):
        small_model().save_pretrained(tmp_path / "taken")


def test_names_a_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder .*absent"):
        SLATE.from_pretrained(tmp_path / "absent")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_names_a_missing_file(folder, name):
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"holds no {name}"):
        SLATE.from_pretrained(folder)


@pytest.mark.parametrize("inner", ["checkpoints/step-000000020", "step-000000020", "final"])
def test_names_a_model_in_the_folder_of_a_run(folder, inner):
    run = folder.parent / "run"
    for name in (inner, ".step-000000030.partial"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(folder, run / name)
    (run / "config.json").write_text("{}")
    with pytest.raises(
        FileNotFoundError, match=f"but 1 of its .*pass one, such as '{run}/{inner}'"
    ):
        SLATE.from_pretrained(run)


def test_refuses_a_file_in_place_of_its_folder(folder):
    with pytest.raises(NotADirectoryError, match=r"got the file .*model.safetensors': pass its"):
        SLATE.from_pretrained(folder / "model.safetensors")


@pytest.mark.parametrize("content", [b"", b'{"num_slots": 3', b"\xff\xfe{}"])
def test_refuses_a_corrupt_config(folder, content):
    (folder / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"config.json is no valid JSON"):
        SLATE.from_pretrained(folder)


def test_refuses_a_config_that_is_no_object(folder):
    (folder / "config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"config.json must hold a JSON object; got list"):
        SLATE.from_pretrained(folder)


def test_names_unknown_and_missing_settings(folder):
    settings = settings_of(folder)
    settings["slots"] = settings.pop("num_slots")
    (folder / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=r"unknown \['slots'\], missing \['num_slots'\]"):
        SLATE.from_pretrained(folder)


def test_names_a_setting_out_of_range(folder):
    (folder / "config.json").write_text(json.dumps(settings_of(folder) | {"num_slots": "3"}))
    with pytest.raises(ValueError, match=r"config.json: num_slots must be an int; got '3'"):
        SLATE.from_pretrained(folder)


def test_names_misshaped_tensors(folder):
    (folder / "config.json").write_text(json.dumps(settings_of(folder) | {"vocab_size": 41}))
    with pytest.raises(
        ValueError, match=r"misshaped .*out.weight \(40, 24\) in place of \(41, 24\)"
    ):
        SLATE.from_pretrained(folder)


def test_names_missing_and_unexpected_tensors(folder):
    (folder / "config.json").write_text(json.dumps(settings_of(folder) | {"num_decoder_blocks": 2}))
    with pytest.raises(
        ValueError, match=r"holds the unexpected (tf_dec.blocks.2.\S+, ){4}.* and 13 more"
    ):
        SLATE.from_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(settings_of(folder) | {"num_decoder_blocks": 4}))
    with pytest.raises(ValueError, match=r"misses (tf_dec.blocks.3.\S+, ){4}.* and 13 more"):
        SLATE.from_pretrained(folder)


@pytest.mark.parametrize("damage", ["truncated", "empty", "garbage"])
def test_refuses_corrupt_weights(folder, damage):
    path = folder / "model.safetensors"
    content = path.read_bytes()
    path.write_bytes({"truncated": content[:-100], "empty": b"", "garbage": b"x" * 100}[damage])
    with pytest.raises(ValueError, match=r"model.safetensors is no valid safetensors file"):
        SLATE.from_pretrained(folder)
