import errno
import json
import math
import multiprocessing
import os
import re
from dataclasses import replace

import pytest
import torch
from torch.utils.data import DataLoader

from fastslots.data.scenes.cache import SceneCache
from fastslots.data.scenes.dataset import MAX_OBJECTS, SPLITS, Scenes, render_scenes
from fastslots.data.scenes.sampling import (
    COLORS,
    TAN_HALF_VIEW,
    hashed_uniform,
    sample_scenes,
)
from fastslots.data.scenes.shapes import (
    CUBE,
    CYLINDER,
    SHAPES,
    SPHERE,
    Vec,
    intersect,
    normal,
    silhouette_distance,
)
from fastslots.data.scenes.tracer import TILE, render, render_masks

SMALL = {"image_size": 24, "samples": 1}


@pytest.fixture(scope="module")
def batch():
    return render_scenes(range(12), image_size=48, samples=4)


def parameters(number=64, min_objects=3, max_objects=6, seed=0):
    return sample_scenes(
        torch.arange(number), seed=seed, min_objects=min_objects, max_objects=max_objects
    )


def columns(*rows):
    return Vec.of(torch.tensor(rows, dtype=torch.float32))


# Determinism


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


# Placement


@pytest.mark.parametrize(("low", "high"), [(3, 6), (1, 1), (10, 10)])
def test_object_counts_stay_in_their_range_and_reach_its_ends(low, high):
    p = parameters(48, low, high)
    assert p.count.min() == low
    assert p.count.max() == high
    assert torch.equal((p.shape >= 0).sum(1), p.count)


def test_every_class_appears_about_equally_often():
    p = parameters(400)
    for tensor, number in ((p.shape, 3), (p.size, 2), (p.material, 2), (p.color, 8)):
        share = torch.bincount(tensor[tensor >= 0], minlength=number) / p.count.sum()
        assert len(share) == number
        assert (share * number - 1).abs().max() < 0.25


@pytest.mark.parametrize(("low", "high"), [(3, 6), (10, 10)])
def test_objects_stand_apart_on_the_floor_inside_the_frame_and_before_the_mirror(low, high):
    p = parameters(48, low, high)
    x, y, z = p.position.double().unbind(-1)
    radius = torch.where(p.shape == CUBE, p.half_extent * math.sqrt(2), p.half_extent).double()
    present = p.shape >= 0
    assert torch.equal(z.float(), p.half_extent)
    assert x.abs().max() <= 3
    assert y.abs().max() <= 3
    gap = ((x[:, :, None] - x[:, None]) ** 2 + (y[:, :, None] - y[:, None]) ** 2).sqrt()
    gap = gap - radius[:, :, None] - radius[:, None]
    pairs = present[:, :, None] & present[:, None] & ~torch.eye(high, dtype=torch.bool)
    assert gap[pairs].numel() > 0
    assert gap[pairs].min() > 0.25 - 1e-5
    foot_x, foot_y, nx, ny = p.mirror.double()[:, None].unbind(-1)
    clearance = (x - foot_x) * nx + (y - foot_y) * ny - radius
    assert clearance[present].min() > 0.2
    eye = p.position - p.camera[:, None]
    right, up, forward = ((eye * a[:, None]).sum(-1) for a in p.axes.unbind(1))
    assert (right / forward)[present].abs().max() < TAN_HALF_VIEW
    assert (up / forward)[present].abs().max() < TAN_HALF_VIEW


def test_usual_scenes_keep_clevrs_margin_along_the_cameras_axes():
    p = parameters(64)
    right = (p.position * p.axes[:, :1]).sum(-1)
    flat_forward = torch.nn.functional.normalize(p.axes[:, 2, :2], dim=-1)
    forward = (p.position[..., :2] * flat_forward[:, None]).sum(-1)
    present = p.shape >= 0
    pairs = present[:, :, None] & present[:, None] & ~torch.eye(6, dtype=torch.bool)
    for along in (right, forward):
        assert (along[:, :, None] - along[:, None]).abs()[pairs].min() > 0.4 - 1e-5


# Geometry


@pytest.mark.parametrize("shape", range(3), ids=SHAPES)
def test_rays_hit_a_shape_where_its_surface_is(shape):
    generator = torch.Generator().manual_seed(0)
    origin = 4 * torch.nn.functional.normalize(torch.randn(500, 3, generator=generator), dim=1)
    target = torch.randn(500, 3, generator=generator) * 0.8
    direction = torch.nn.functional.normalize(target - origin, dim=1)
    distance = intersect(shape, Vec.of(origin), Vec.of(direction))
    steps = torch.linspace(0, 8, 4001)
    points = origin[:, None] + steps[:, None] * direction[:, None]
    inside = solid(shape, points)
    walked = torch.where(inside.any(1), steps[inside.int().argmax(1)], torch.inf)
    certain = solid(shape, points, 0.02).any(1) | ~solid(shape, points, -0.02).any(1)
    assert certain.sum() > 400
    assert torch.equal(distance.isfinite()[certain], walked.isfinite()[certain])
    both = certain & walked.isfinite()
    assert both.sum() > 150
    assert (distance - walked)[both].abs().max() < 0.05


def solid(shape, points, margin=0.0):
    x, y, z = points.unbind(-1)
    within = 1 - margin
    if shape == CUBE:
        return points.abs().amax(-1) < within
    if shape == SPHERE:
        return points.norm(dim=-1) < within
    return (x * x + y * y < within**2) & (z.abs() < within)


@pytest.mark.parametrize("shape", range(3), ids=SHAPES)
def test_a_line_meets_a_shape_exactly_where_its_outline_distance_is_negative(shape):
    generator = torch.Generator().manual_seed(1)
    origin = 4 * torch.nn.functional.normalize(torch.randn(800, 3, generator=generator), dim=1)
    target = torch.randn(800, 3, generator=generator)
    direction = torch.nn.functional.normalize(target - origin, dim=1)
    gap = silhouette_distance(shape, Vec.of(origin), Vec.of(direction))
    hit = intersect(shape, Vec.of(origin), Vec.of(direction)).isfinite()
    clear = gap.abs() > 0.02
    assert torch.equal(hit[clear], gap[clear] < 0)
    assert clear.sum() > 700


def test_normals_point_outward_and_round_the_edges():
    points = columns((0, 0, 1), (1, 0, 0), (0.6, 0.8, 0), (0, 0.3, -1))
    shapes = torch.tensor([CUBE, CUBE, CYLINDER, CYLINDER])
    n = torch.stack([*normal(shapes, points)], -1)
    expected = torch.tensor([(0, 0, 1), (1, 0, 0), (0.6, 0.8, 0), (0, 0, -1.0)])
    torch.testing.assert_close(n, expected)
    edge = torch.stack([*normal(torch.tensor([CUBE]), columns((1, 1, 0)))], -1)
    torch.testing.assert_close(edge, torch.tensor([(1.0, 1.0, 0.0)]) / math.sqrt(2))


# Images, masks and properties


def test_images_and_masks_have_their_types_and_ranges(batch):
    assert batch.images.shape == (12, 3, 48, 48)
    assert batch.images.dtype == torch.float32
    assert batch.masks.shape == (12, 48, 48)
    assert batch.masks.dtype == torch.uint8
    assert batch.images.min() >= 0
    assert batch.images.max() <= 1
    torch.testing.assert_close(batch.images * 255, (batch.images * 255).round())
    for mask, count in zip(batch.masks, batch.objects.count, strict=True):
        assert mask.max() <= count


def test_every_object_is_seen_around_its_pixel_coordinates(batch):
    for scene, count in enumerate(batch.objects.count.tolist()):
        for number in range(count):
            rows, cols = (batch.masks[scene] == number + 1).nonzero(as_tuple=True)
            assert len(rows) > 0
            x, y, depth = batch.objects.pixel_coordinates[scene, number].tolist()
            assert abs(cols.float().mean() + 0.5 - x) < 4
            assert abs(rows.float().mean() + 0.5 - y) < 4
            assert 5 < depth < 18


def test_the_mask_is_the_disc_of_a_lone_sphere():
    found = 0
    for index in range(40):
        one = render_scenes([index], image_size=64, samples=1, min_objects=1, max_objects=1)
        if one.objects.shape[0, 0] != SPHERE:
            continue
        found += 1
        x, y, depth = one.objects.pixel_coordinates[0, 0].tolist()
        radius = (0.7, 0.35)[one.objects.size[0, 0]] * 32 / (depth * TAN_HALF_VIEW)
        steps = torch.arange(64) + 0.5
        away = ((steps[None] - x) ** 2 + (steps[:, None] - y) ** 2).sqrt()
        mask = one.masks[0].bool()
        assert mask[away < 0.93 * radius].all()
        assert not mask[away > 1.12 * radius + 0.5].any()
    assert found > 5


def test_rubber_shows_its_colour():
    p = parameters(60)
    batch = render_scenes(range(60), image_size=48, samples=1)
    table = torch.tensor(list(COLORS.values())) / 255
    checked = 0
    for scene, number in ((p.material == 0) & (p.size == 0)).nonzero().tolist():
        pixels = batch.images[scene][:, batch.masks[scene] == number + 1]
        shown = pixels.mean(1) ** 2.2
        true = table[p.color[scene, number]]
        assert torch.nn.functional.cosine_similarity(shown, true, dim=0) > 0.95
        checked += 1
    assert checked > 20


def test_the_floor_is_grey_and_darkens_towards_the_backdrop():
    empty = render_scenes(range(8), image_size=64, samples=1, mirror=False)
    floor = empty.images.where((empty.masks == 0)[:, None], torch.nan)
    front, back = floor[:, :, -8:].nanmean((0, 2, 3)), floor[:, :, :8].nanmean((0, 2, 3))
    assert front.max() - front.min() < 0.06
    assert 0.5 < front.mean() < 0.62
    assert 0.36 < back.mean() < 0.45


def test_objects_darken_the_floor_beside_them_and_brighten_it_nowhere():
    p = parameters(12, 1, 1)
    empty = replace(p, shape=torch.full_like(p.shape, -1))
    options = {"image_size": 48, "mirror": False}
    with_object, without = (render(x, samples=1, **options).mean(1) for x in (p, empty))
    mask = render_masks(p, **options) > 0
    loss = (without - with_object).masked_fill(mask, 0)
    around = torch.nn.functional.max_pool2d(mask.float(), 9, 1, 4) > 0
    assert loss.min() > -1e-5
    assert (loss * around).flatten(1).amax(1).min() > 0.03
    assert (loss[:, :4] < 0.02).all()


def test_the_mirror_changes_the_image_above_and_leaves_the_masks_alone():
    plain = render_scenes(range(8), image_size=48, mirror=False)
    mirrored = render_scenes(range(8), image_size=48, mirror=True)
    assert torch.equal(plain.masks, mirrored.masks)
    change = (plain.images - mirrored.images).abs().mean(1)
    assert change[:, :16].mean() > 0.02
    bare = mirrored.masks == 0
    assert (change[:, 28:][bare[:, 28:]] > 0.01).float().mean() < 0.005


def test_the_mirror_shows_the_objects_colours():
    def most_colour(mirror):
        batch = render_scenes(range(10), image_size=64, mirror=mirror)
        saturation = batch.images.amax(1) - batch.images.amin(1)
        return (saturation * (batch.masks == 0))[:, :20].flatten(1).amax(1)

    assert (most_colour(mirror=False) < 0.2).sum() >= 8
    assert (most_colour(mirror=True) > 0.2).sum() >= 8


def test_more_samples_approach_the_same_image():
    rough, fine, finest = (render_scenes(range(4), image_size=32, samples=s) for s in (1, 9, 36))
    error = [(x.images - finest.images).square().mean() for x in (rough, fine)]
    assert error[1] < 0.3 * error[0]
    assert error[0] < 0.01
    assert torch.equal(rough.masks, finest.masks)


@pytest.mark.parametrize("size", [1, TILE - 1, TILE + 1, 30])
def test_any_image_size_works(size):
    batch = render_scenes([0, 1], image_size=size, samples=1)
    assert batch.images.shape == (2, 3, size, size)
    assert batch.images.isfinite().all()


def test_no_scenes_give_an_empty_batch():
    batch = render_scenes([], **SMALL)
    assert batch.images.shape == (0, 3, 24, 24)
    assert batch.objects.position.shape == (0, 6, 3)


def test_scene_descriptions_follow_clevrs_json(batch):
    objects = batch.objects.clevr(2)
    assert len(objects) == batch.objects.count[2]
    assert set(objects[0]) == {
        "shape", "size", "material", "color", "3d_coords", "rotation", "pixel_coords",
    }  # fmt: skip
    assert all(o["color"] in COLORS and o["shape"] in SHAPES for o in objects)
    assert all(0 <= o["rotation"] < 360 and len(o["pixel_coords"]) == 3 for o in objects)
    json.dumps(objects)


# The dataset


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


# The cache


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


# Arguments


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
