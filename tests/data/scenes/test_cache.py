"""The cache of rendered scenes."""

import errno
import json
import multiprocessing
import os

import pytest
import torch

from fastslots.data.scenes.cache import SceneCache
from fastslots.data.scenes.dataset import Scenes, render_scenes
from tests.data.scenes.placed import SMALL


def test_the_cache_gives_back_the_same_scenes_without_rendering(tmp_path, monkeypatch):
    fresh = Scenes(6, **SMALL).batch([4, 1, 4])
    dataset = Scenes(6, cache=tmp_path / "new" / "folder", **SMALL)
    first = dataset.batch([4, 1, 4])
    monkeypatch.setattr("fastslots.data.scenes.dataset.render", None)
    again = Scenes(6, cache=tmp_path / "new" / "folder", **SMALL).batch([4, 1, 4])
    for cached in (first, again):
        assert torch.equal(cached.images, fresh.images)
        assert torch.equal(cached.masks, fresh.masks)
        assert torch.equal(cached.objects.position, fresh.objects.position)


@pytest.mark.parametrize("damage", ["cut", "hole", "flip"])
def test_a_damaged_record_is_rendered_again(tmp_path, damage):
    dataset = Scenes(3, cache=tmp_path, **SMALL)
    whole = dataset.batch([0, 1, 2]).images
    path = dataset.cache.path
    data = bytearray(path.read_bytes())
    last = 2 * len(data) // 3
    if damage == "cut":
        del data[last + 100 :]
    elif damage == "hole":
        data[last:] = bytes(len(data) - last)
    else:
        data[last + 100] ^= 1
    path.write_bytes(data)
    assert dataset.cache.read([0, 1, 2]).keys() == {0, 1}
    assert torch.equal(dataset.batch([0, 1, 2]).images, whole)
    assert dataset.cache.read([0, 1, 2]).keys() == {0, 1, 2}


@pytest.mark.parametrize(
    "other",
    [{"seed": 1}, {"samples": 4}, {"mirror": False}, {"min_objects": 2}, {"split": "val"}],
    ids=str,
)
def test_other_parameters_use_another_file(tmp_path, other):
    Scenes(2, cache=tmp_path, **SMALL).batch([0])
    images = Scenes(2, cache=tmp_path, **(SMALL | other)).batch([0]).images
    assert torch.equal(images, Scenes(2, **(SMALL | other)).batch([0]).images)
    assert len(list(tmp_path.glob("*.bin"))) == 2


def _fill(folder, indices):
    Scenes(8, cache=folder, **SMALL).batch(indices)


@pytest.mark.slow
def test_processes_fill_a_cache_together(tmp_path):
    context = multiprocessing.get_context("spawn")
    shares = ([0, 1, 2, 3, 4], [7, 6, 5, 4, 3])
    processes = [context.Process(target=_fill, args=(tmp_path, share)) for share in shares]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    dataset = Scenes(8, cache=tmp_path, **SMALL)
    assert dataset.cache.read(range(8)).keys() == set(range(8))
    assert torch.equal(dataset.batch(range(8)).images, Scenes(8, **SMALL).batch(range(8)).images)


def test_a_cache_of_other_parameters_under_its_name_is_refused(tmp_path):
    path = SceneCache(tmp_path, {"seed": 0}, 8).path
    path.with_suffix(".json").write_text(json.dumps({"seed": 1}))
    with pytest.raises(ValueError, match="made with other parameters"):
        SceneCache(tmp_path, {"seed": 0}, 8)


def test_a_cache_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot be written"):
        Scenes(2, cache=tmp_path / "file", **SMALL)


def test_a_full_disk_is_an_error_that_keeps_what_is_stored(tmp_path, monkeypatch):
    dataset = Scenes(4, cache=tmp_path, **SMALL)
    dataset.batch([0])

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(OSError, match="No space left on device"):
            dataset.batch([0, 1])
        patch.setattr(os, "pwrite", lambda *_: 7)
        with pytest.raises(OSError, match="only 7 of"):
            dataset.batch([0, 1])
    assert dataset.cache.read(range(4)).keys() == {0}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_the_default_dtype_changes_no_scene(default_dtype, dtype):
    expected = render_scenes(range(3), **SMALL)
    default_dtype(dtype)
    actual = render_scenes(range(3), **SMALL)
    assert actual.images.dtype == torch.float32
    assert torch.equal(actual.images, expected.images)
    assert torch.equal(actual.masks, expected.masks)
    assert torch.equal(actual.objects.position, expected.objects.position)
