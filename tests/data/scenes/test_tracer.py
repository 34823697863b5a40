"""Images, masks and what is said of their objects."""

import json
from dataclasses import replace

import pytest
import torch

from fastslots.data.scenes.dataset import render_scenes
from fastslots.data.scenes.sampling import (
    COLORS,
    TAN_HALF_VIEW,
)
from fastslots.data.scenes.shapes import (
    SHAPES,
    SPHERE,
)
from fastslots.data.scenes.tracer import TILE, render, render_masks
from tests.data.scenes.placed import SMALL, parameters


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
