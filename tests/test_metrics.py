"""The metrics against loops over pairs of pixels, other libraries, and numbers worked out by hand."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torchmetrics.functional.clustering import adjusted_rand_score
from torchmetrics.functional.segmentation import mean_iou

from fastslots.metrics import (
    adjusted_rand_index,
    mean_best_overlap,
    slots_used,
    squared_error,
)

Metric = Callable[[Tensor, Tensor], Tensor]


def fg_ari(true: Tensor, pred: Tensor) -> Tensor:
    return adjusted_rand_index(true, pred, ignore_background=True)


METRICS = [adjusted_rand_index, fg_ari, mean_best_overlap]
each_metric = pytest.mark.parametrize("metric", METRICS, ids=["ari", "fg-ari", "mbo"])


def random_maps(
    batch: int, size: int, num_objects: int, num_slots: int, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """True labels, a third of whose pixels are background, and predictions that partly agree."""
    generator = torch.Generator().manual_seed(seed)
    true = torch.randint(num_objects + 1, (batch, size, size), generator=generator)
    true[torch.rand(true.shape, generator=generator) < 0.3] = 0
    pred = torch.randint(num_slots, true.shape, generator=generator)
    agree = torch.rand(true.shape, generator=generator) < 0.5
    return true, torch.where(agree, true % num_slots, pred)


def ari_over_pairs(true: Tensor, pred: Tensor, ignore_background: bool) -> float:
    """One image: counts how the two maps treat every unordered pair of pixels."""
    labels = zip(true.flatten().tolist(), pred.flatten().tolist(), strict=True)
    pixels = [(t, p) for t, p in labels if t or not ignore_background]
    if not pixels:
        return math.nan
    both = same_true = same_pred = pairs = 0
    for (t1, p1), (t2, p2) in itertools.combinations(pixels, 2):
        both += t1 == t2 and p1 == p2
        same_true += t1 == t2
        same_pred += p1 == p2
        pairs += 1
    if same_true == same_pred and same_true in (0, pairs):
        return 1.0
    expected = same_true * same_pred / pairs
    return (both - expected) / ((same_true + same_pred) / 2 - expected)


def best_overlap_over_sets(true: Tensor, pred: Tensor) -> float:
    """One image: IoU of sets of pixels."""

    def regions(labels: Tensor) -> dict[int, set[int]]:
        sets: dict[int, set[int]] = {}
        for pixel, label in enumerate(labels.flatten().tolist()):
            sets.setdefault(label, set()).add(pixel)
        return sets

    objects = {label: pixels for label, pixels in regions(true).items() if label}
    if not objects:
        return math.nan
    slots = regions(pred).values()
    best = [max(len(o & s) / len(o | s) for s in slots) for o in objects.values()]
    return sum(best) / len(best)


@pytest.mark.parametrize("num_slots", [1, 2, 7])
@pytest.mark.parametrize("num_objects", [1, 4])
def test_equals_a_loop_over_pairs_of_pixels(num_objects: int, num_slots: int) -> None:
    true, pred = random_maps(5, 6, num_objects, num_slots)
    for ignore_background in (False, True):
        expected = [
            ari_over_pairs(t, p, ignore_background) for t, p in zip(true, pred, strict=True)
        ]
        actual = adjusted_rand_index(true, pred, ignore_background=ignore_background)
        assert actual.tolist() == pytest.approx(expected, rel=1e-12, abs=1e-12)
    expected = [best_overlap_over_sets(t, p) for t, p in zip(true, pred, strict=True)]
    assert mean_best_overlap(true, pred).tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # torchmetrics' own sparse tensors
@pytest.mark.parametrize("ignore_background", [False, True])
def test_ari_equals_that_of_torchmetrics(ignore_background: bool) -> None:
    true, pred = random_maps(8, 32, 5, 6, seed=1)
    actual = adjusted_rand_index(true, pred, ignore_background=ignore_background)
    for t, p, value in zip(true, pred, actual, strict=True):
        counted = t > 0 if ignore_background else t >= 0
        expected = adjusted_rand_score(p[counted], t[counted])
        assert value.item() == pytest.approx(expected.item(), abs=1e-6)


def test_best_overlap_equals_the_iou_of_torchmetrics_where_slot_and_object_are_matched() -> None:
    # Mostly equal maps: the best slot of an object is the one of its own number.
    true, _ = random_maps(6, 32, 4, 5, seed=2)
    generator = torch.Generator().manual_seed(3)
    wrong = torch.rand(true.shape, generator=generator) < 0.2
    pred = torch.where(wrong, torch.randint(5, true.shape, generator=generator), true)
    expected = mean_iou(pred, true, num_classes=5, include_background=False, input_format="index")
    torch.testing.assert_close(mean_best_overlap(true, pred).float(), expected)


def test_values_worked_out_by_hand() -> None:
    # Objects of 2, 2 and 4 pixels. n: 1->{a: 2}, 2->{a: 1, b: 1}, 0->{b: 4};  r = 2 + 12 = 14,
    # a = 2 + 2 + 12 = 16, b = 6 + 20 = 26, E = 16 * 26 / 56 = 52 / 7.
    true = torch.tensor([[1, 1, 2, 2, 0, 0, 0, 0]])
    pred = torch.tensor([[5, 5, 5, 3, 3, 3, 3, 3]])
    ari = (14 - 52 / 7) / (21 - 52 / 7)
    assert adjusted_rand_index(true, pred).item() == pytest.approx(ari, rel=1e-14)
    # Foreground: r = 2, a = 4, b = 6, E = 24 / 12 = 2: no better than chance.
    assert fg_ari(true, pred).item() == 0
    # Object 1: 2 of 3 pixels. Object 2: 1 of 4 with label 5, 1 of 6 with label 3.
    assert mean_best_overlap(true, pred).item() == pytest.approx((2 / 3 + 1 / 4) / 2, rel=1e-14)


@each_metric
def test_a_perfect_segmentation_scores_1(metric: Metric) -> None:
    true, _ = random_maps(4, 16, 5, 5)
    assert metric(true, true).tolist() == [1.0] * 4


@each_metric
def test_the_numbers_of_the_labels_do_not_matter(metric: Metric) -> None:
    true, pred = random_maps(4, 16, 5, 7)
    expected = metric(true, pred)
    objects, slots = torch.tensor([0, 4, 1, 200, 2, 5]), torch.tensor([9, 0, 255, 3, 4, 6, 2])
    torch.testing.assert_close(metric(objects[true], slots[pred]), expected, rtol=0, atol=1e-15)


@each_metric
def test_an_image_does_not_depend_on_its_batch(metric: Metric) -> None:
    true, pred = random_maps(6, 16, 5, 7)
    true[2], pred[4] = 0, 200
    alone = torch.cat([metric(t[None], p[None]) for t, p in zip(true, pred, strict=True)])
    torch.testing.assert_close(metric(true, pred), alone, rtol=0, atol=0, equal_nan=True)


@each_metric
@pytest.mark.parametrize("shape", [(3, 64), (3, 4, 4, 4)], ids=["flat", "video"])
def test_the_arrangement_of_the_pixels_does_not_matter(
    metric: Metric, shape: tuple[int, ...]
) -> None:
    true, pred = random_maps(3, 8, 3, 4)
    torch.testing.assert_close(
        metric(true.view(shape), pred.view(shape)), metric(true, pred), rtol=0, atol=0
    )


@each_metric
def test_every_integer_dtype_gives_the_same(metric: Metric) -> None:
    true, pred = random_maps(3, 8, 3, 4)
    actual = metric(true.to(torch.uint8), pred.to(torch.int16))
    assert torch.equal(actual, metric(true, pred))
    assert actual.dtype == torch.float64


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@each_metric
def test_a_gpu_gives_the_same(metric: Metric) -> None:
    true, pred = random_maps(6, 32, 5, 7)
    there = metric(true.cuda(), pred.cuda())
    assert there.is_cuda
    torch.testing.assert_close(there.cpu(), metric(true, pred), rtol=1e-14, atol=1e-14)


def test_a_million_pixels_do_not_overflow() -> None:
    true = torch.zeros(1, 1500, 1500, dtype=torch.uint8)
    true[:, :, 750:] = 1
    pred = true.clone()
    pred[:, :750, :750] = 2
    # By blocks of a quarter, up to 1 / N: r = 6/16, a = 1/2, b = 6/16 of all pairs.
    expected = (6 / 16 - 3 / 16) / (7 / 16 - 3 / 16)
    assert adjusted_rand_index(true, pred).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("true", "pred", "ari", "foreground", "overlap"),
    [
        pytest.param([3, 3, 3], [1, 1, 1], 1.0, 1.0, 1.0, id="one-label-each"),
        pytest.param([3, 3, 3], [0, 1, 2], 0.0, 0.0, 1 / 3, id="one-object-in-pieces"),
        pytest.param([1, 2, 3], [0, 0, 0], 0.0, 0.0, 1 / 3, id="one-slot"),
        pytest.param([1, 2, 3], [4, 5, 6], 1.0, 1.0, 1.0, id="every-pixel-an-object"),
        pytest.param([0, 0, 0], [1, 1, 1], 1.0, math.nan, math.nan, id="all-background"),
        pytest.param([0, 0, 0], [0, 1, 1], 0.0, math.nan, math.nan, id="background-in-pieces"),
        pytest.param([4], [2], 1.0, 1.0, 1.0, id="a-single-pixel"),
        pytest.param([0], [2], 1.0, math.nan, math.nan, id="a-single-pixel-of-background"),
        pytest.param([0, 0, 7], [1, 1, 1], 0.0, 1.0, 1 / 3, id="one-foreground-pixel"),
        pytest.param([0, 0, 9, 9], [0, 0, 4, 4], 1.0, 1.0, 1.0, id="hidden-objects-empty-slots"),
        pytest.param([1, 1, 2, 2], [0, 1, 0, 1], -0.5, -0.5, 1 / 3, id="worse-than-chance"),
    ],
)
def test_edge_cases(
    true: list[int], pred: list[int], ari: float, foreground: float, overlap: float
) -> None:
    maps = torch.tensor([true]), torch.tensor([pred])
    actual = [metric(*maps).item() for metric in METRICS]
    assert actual == pytest.approx([ari, foreground, overlap], nan_ok=True)


@each_metric
@pytest.mark.parametrize("shape", [(2, 0), (0, 4, 4)], ids=["no-pixels", "no-images"])
def test_nothing_to_count_is_nan(metric: Metric, shape: tuple[int, ...]) -> None:
    empty = torch.zeros(shape, dtype=torch.uint8)
    actual = metric(empty, empty)
    assert actual.shape == shape[:1]
    assert actual.isnan().all()


def test_squared_error_sums_an_images_values() -> None:
    image = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, 3, 4, 4)
    recon = torch.full((2, 3, 4, 4), 0.25)
    assert squared_error(image, recon).tolist() == [48 / 16, 48 * 9 / 16]


def test_squared_error_is_summed_in_float64() -> None:
    # A sum in float32 has no place for the last term.
    recon = torch.cat((torch.full((1, 1), 2.0**13), torch.full((1, 4), 1.0)), 1)
    assert squared_error(torch.zeros(1, 5), recon).item() == 2**26 + 4


def test_slots_used_counts_the_slots_that_win_a_token() -> None:
    attn = torch.tensor([[[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]], [[0.2, 0.4, 0.4], [0.1, 0.8, 0.1]]])
    actual = slots_used(attn)
    assert actual.dtype == torch.float64
    assert actual.tolist() == [2, 1]


@each_metric
def test_rejects_maps_of_different_shapes(metric: Metric) -> None:
    maps = torch.zeros(2, 4, 4, dtype=torch.uint8), torch.zeros(2, 16, dtype=torch.uint8)
    message = r"^pred must have the shape of true, \[2, 4, 4\]; got \[2, 16\]$"
    with pytest.raises(ValueError, match=message):
        metric(*maps)


@each_metric
def test_rejects_a_map_without_a_batch(metric: Metric) -> None:
    with pytest.raises(ValueError, match=r"^true must be \[B, ...\], a map .*; got \[4\]$"):
        metric(torch.zeros(4, dtype=torch.uint8), torch.zeros(4, dtype=torch.uint8))


@pytest.mark.parametrize("name", ["true", "pred"])
@pytest.mark.parametrize(("label", "got"), [(-1, "-1 to 0"), (256, "0 to 256")])
def test_rejects_a_label_out_of_range(name: str, label: int, got: str) -> None:
    maps = {"true": torch.zeros(1, 4, dtype=torch.int64), "pred": torch.zeros(1, 4).long()}
    maps[name][0, 1] = label
    with pytest.raises(ValueError, match=f"^{name} must hold labels from 0 to 255; got {got}$"):
        mean_best_overlap(**maps)


@pytest.mark.parametrize("name", ["true", "pred"])
@pytest.mark.parametrize(
    ("labels", "got"),
    [(torch.zeros(1, 4), "torch.float32"), ([[0]], "list")],
    ids=["float", "list"],
)
def test_rejects_labels_that_are_no_integers(name: str, labels: object, got: str) -> None:
    maps: dict[str, object] = dict.fromkeys(("true", "pred"), torch.zeros(1, 4).long())
    maps[name] = labels
    with pytest.raises(TypeError, match=f"^{name} must be a tensor of integers; got {got}$"):
        adjusted_rand_index(**maps)


@pytest.mark.parametrize("shape", [(2, 3, 8, 4), (2,)])
def test_rejects_a_reconstruction_of_another_shape(shape: tuple[int, ...]) -> None:
    image = torch.zeros(2, 3, 8, 8) if len(shape) > 1 else torch.zeros(2)
    with pytest.raises(ValueError, match=r"^image and recon must have one shape \[B, ...\]; got "):
        squared_error(image, torch.zeros(shape))


@pytest.mark.parametrize("shape", [(2, 4), (2, 4, 0)])
def test_rejects_attention_that_is_none(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"^attn must be \[B, N, K\] with K at least 1; got \["):
        slots_used(torch.zeros(shape))
