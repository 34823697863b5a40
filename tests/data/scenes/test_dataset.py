"""Scenes by number: the same bits wherever they are rendered, and what is refused."""

import math
import multiprocessing
import re

import pytest
import torch
from torch.utils.data import DataLoader

from fastslots.data.scenes.dataset import MAX_OBJECTS, SPLITS, Scenes, render_scenes
from fastslots.data.scenes.sampling import (
    hashed_uniform,
)
from tests.data.scenes.placed import SMALL


@pytest.mark.parametrize("samples", [1, 4])
def test_an_image_is_the_same_bits_in_any_batch_and_order(samples):
    indices = [7, 3, 11, 0, 5]
    together = render_scenes(indices, image_size=32, samples=samples)
    for row, index in enumerate(indices):
        alone = render_scenes([index], image_size=32, samples=samples)
        assert torch.equal(together.images[row], alone.images[0])
        assert torch.equal(together.masks[row], alone.masks[0])
        assert torch.equal(together.objects.position[row], alone.objects.position[0])
        assert torch.equal(together.objects.rotation[row], alone.objects.rotation[0])


@pytest.mark.slow
def test_an_image_is_the_same_bits_with_any_number_of_threads():
    threads = torch.get_num_threads()
    try:
        images = []
        for number in (1, 2):
            torch.set_num_threads(number)
            images.append(render_scenes(range(6), image_size=64).images)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*images)


def _image_bytes(index, queue):
    queue.put(render_scenes([index], **SMALL).images.flatten().tolist())


@pytest.mark.slow
def test_another_process_renders_the_same_bits():
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_image_bytes, args=(3, queue))
    process.start()
    there = queue.get(timeout=60)
    process.join()
    assert there == render_scenes([3], **SMALL).images.flatten().tolist()


def test_global_random_state_is_neither_read_nor_changed():
    torch.manual_seed(1)
    first = render_scenes([0], **SMALL).images
    state = torch.get_rng_state()
    torch.manual_seed(2)
    assert torch.equal(first, render_scenes([0], **SMALL).images)
    torch.manual_seed(1)
    assert torch.equal(state, torch.get_rng_state())


def test_seeds_and_indices_give_different_scenes():
    images = [
        render_scenes([index], seed=seed, **SMALL).images for seed in (0, 1) for index in (0, 1)
    ]
    for i in range(4):
        for j in range(i):
            assert (images[i] - images[j]).abs().max() > 0.05


def test_hashed_numbers_are_uniform_and_uncorrelated():
    u = hashed_uniform(5, torch.arange(200)[:, None], torch.arange(200))
    error = 1 / math.sqrt(u.numel())
    assert u.min() >= 0
    assert u.max() < 1
    assert abs(u.mean() - 0.5) < 5 * error / math.sqrt(12)
    assert abs((u * u).mean() - 1 / 3) < 5 * error
    for shifted in (u.roll(1, 0), u.roll(1, 1), u.T):
        assert abs(((u - 0.5) * (shifted - 0.5)).mean()) < 5 * error / 12


def test_a_data_loader_renders_whole_batches():
    dataset = Scenes(10, **SMALL)
    batches = list(DataLoader(dataset, batch_size=4))
    assert [len(b) for b in batches] == [4, 4, 2]
    assert torch.equal(torch.cat(batches), torch.stack([dataset[i] for i in range(10)]))
    assert torch.equal(dataset.batch([3]).images, dataset.scene(3).images)


def test_splits_do_not_share_scenes():
    positions = [Scenes(30, split=s, **SMALL).batch(range(30)).objects.position for s in SPLITS]
    rows = torch.cat(positions).flatten(1)
    assert len(rows.unique(dim=0)) == 90


def test_the_training_split_is_the_sequence_of_its_seed():
    there = render_scenes([5], seed=3, **SMALL)
    here = Scenes(6, seed=3, **SMALL).scene(5)
    assert torch.equal(there.images, here.images)
    assert torch.equal(there.masks, here.masks)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": 0}, "image_size must be at least 1; got 0"),
        ({"samples": 0}, "samples must be at least 1; got 0"),
        ({"samples": 3}, "samples must be a square number; got 3"),
        ({"min_objects": 0}, "min_objects must be at least 1; got 0"),
        ({"min_objects": 5, "max_objects": 4}, "got 5 and 4"),
        ({"max_objects": MAX_OBJECTS + 1}, "max_objects <= 10 must hold"),
        ({"seed": -1}, "seed must be at least 0; got -1"),
        ({"device": "meta"}, "device must be one of"),
    ],
)
def test_rejects_values_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        render_scenes([0], **arguments)
    with pytest.raises(ValueError, match=re.escape(message)):
        Scenes(1, **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": 64.0}, "image_size must be an int; got 64.0"),
        ({"mirror": 1}, "mirror must be True or False; got 1"),
        ({"seed": True}, "seed must be an int; got True"),
    ],
)
def test_rejects_values_of_the_wrong_type(arguments, message):
    with pytest.raises(TypeError, match=message):
        render_scenes([0], **arguments)


def test_rejects_negative_indices():
    with pytest.raises(ValueError, match="indices must not be negative; got -2"):
        render_scenes([0, -2])


def test_rejects_indices_that_are_not_integers():
    with pytest.raises(TypeError, match="indices must be a list of integers"):
        render_scenes([0.5])


def test_rejects_an_unknown_split():
    with pytest.raises(ValueError, match=r"split must be one of .* got 'training'"):
        Scenes(1, split="training")


@pytest.mark.parametrize(
    ("number", "rule"), [(0, "at least 1"), (-1, "at least 1"), (2**41, r"at most 2\*\*40")]
)
def test_rejects_lengths_out_of_range(number, rule):
    with pytest.raises(ValueError, match=f"num_scenes must be {rule}; got {number}"):
        Scenes(number)


def test_rejects_a_length_that_is_not_an_integer():
    with pytest.raises(TypeError, match=r"num_scenes must be an int; got 1\.0"):
        Scenes(1.0)


@pytest.mark.parametrize("index", [-1, 5])
def test_rejects_an_index_out_of_range(index):
    with pytest.raises(IndexError, match=f"index must be from 0 to 4; got {index}"):
        Scenes(5, **SMALL)[index]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_gpu_renders_the_same_scenes():
    here, there = (render_scenes(range(4), device=d) for d in ("cpu", "cuda"))
    assert torch.equal(here.objects.position, there.objects.position.cpu())
    assert (here.masks != there.masks.cpu()).float().mean() < 1e-3
    assert (here.images - there.images.cpu()).abs().mean() < 1e-3
