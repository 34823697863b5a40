import errno
import subprocess
import sys

import pytest
import torch
from PIL import Image

from fastslots.pictures import (
    attended_slots,
    label_map,
    mask_segmentation,
    painted_slots,
    save_panels,
    segmentation,
    tinted_objects,
    tinted_segments,
)
from fastslots.pictures.saving import BACKGROUND


def make_inputs(batch=2, size=16, num_slots=3, side=4, seed=0):
    """A random image and attention."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(batch, 3, size, size, generator=generator)
    logits = torch.randn(batch, side * side, num_slots, generator=generator)
    return image, (3 * logits).softmax(-1)


def make_panels(batch=2, size=16, num_slots=3, seed=0):
    """Random columns, four of them, and slots."""
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, 3, size, size)
    names = ("image", "dVAE", "slots", "segments")
    columns = {name: torch.rand(shape, generator=generator) for name in names}
    return columns, torch.rand(batch, num_slots, *shape[1:], generator=generator)


def quadrants():
    """Attention of four tokens, each to a slot of its own: slots 2, 0 above 3, 1."""
    return torch.eye(4)[[2, 0, 3, 1]].unsqueeze(0)


def read_pixels(path):
    with Image.open(path) as image:
        assert image.format == "PNG"
        assert image.mode == "RGB"
        data = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
        return data.view(image.height, image.width, 3)


def read_panel(path, row, column, side, top=32, margin=12, gap=4):
    y, x = top + row * (side + gap), margin + column * (side + gap)
    return read_pixels(path)[y : y + side, x : x + side].permute(2, 0, 1)


def test_segmentation_repeats_the_winning_slot_of_each_token_in_raster_order():
    expected = torch.tensor([[2, 2, 0, 0], [2, 2, 0, 0], [3, 3, 1, 1], [3, 3, 1, 1]])
    actual = segmentation(quadrants(), 4)
    assert actual.dtype == torch.uint8
    assert torch.equal(actual, expected.to(torch.uint8).unsqueeze(0))


def test_segmentation_holds_256_slots():
    attn = torch.zeros(1, 1, 256)
    attn[..., 255] = 1
    assert segmentation(attn, 2).unique().tolist() == [255]


def test_mask_segmentation_is_the_slot_whose_mask_is_the_greatest():
    masks = torch.tensor([[0.2, 0.5, 0.4], [0.3, 0.1, 0.4], [0.5, 0.4, 0.2]]).view(1, 3, 3, 1)
    actual = mask_segmentation(masks.expand(1, 3, 3, 3))
    assert actual.dtype == torch.uint8
    assert actual[0, :, 0].tolist() == [2, 0, 0]  # the lowest of two equal ones
    assert torch.equal(actual, actual[..., :1].expand(1, 3, 3))


def test_mask_segmentation_of_attention_is_that_of_the_attention():
    _, attn = make_inputs()
    masks = attn.view(2, 4, 4, 3).permute(0, 3, 1, 2)
    assert torch.equal(mask_segmentation(masks), segmentation(attn, 4))


def test_attended_slots_are_white_where_the_slot_attends_to_nothing():
    image = torch.rand(1, 3, 8, 8)
    panels = attended_slots(image, quadrants())[0]
    expected = torch.ones(4, 3, 8, 8)
    for slot, rows, columns in [(2, 0, 0), (0, 0, 4), (3, 4, 0), (1, 4, 4)]:
        area = (slice(None), slice(rows, rows + 4), slice(columns, columns + 4))
        expected[slot][area] = image[0][area]
    assert torch.equal(panels, expected)


def test_attended_slots_fade_with_attention():
    image = torch.full((1, 3, 4, 4), 0.2)
    panels = attended_slots(image, torch.tensor([[[0.25, 0.75]]]))
    torch.testing.assert_close(panels[0, :, 0, 0, 0], torch.tensor([0.8, 0.4]))


def test_painted_slots_are_white_where_their_masks_are_nothing():
    slot_images = torch.rand(2, 3, 3, 4, 4)
    masks = torch.randint(2, (2, 3, 4, 4)).float()
    shown = masks.bool().unsqueeze(2).expand_as(slot_images)
    panels = painted_slots(slot_images, masks)
    assert torch.equal(panels[shown], slot_images[shown])
    assert panels[~shown].unique().tolist() == [1]
    half = painted_slots(slot_images, torch.full_like(masks, 0.25))
    torch.testing.assert_close(half, 0.25 * slot_images + 0.75)


def test_objects_have_one_colour_each_and_the_background_none():
    image = torch.rand(1, 3, 2, 2)
    masks = torch.tensor([[[0, 1], [1, 2]]], dtype=torch.uint8)
    objects, gray = tinted_objects(image, masks)[0], image.mean(1)[0]
    assert objects.shape == (3, 2, 2)
    tint = objects - gray * 0.4
    assert torch.equal(objects[:, 0, 0], gray[0, 0].expand(3))
    torch.testing.assert_close(tint[:, 0, 1], tint[:, 1, 0])
    assert not torch.allclose(tint[:, 0, 1], tint[:, 1, 1])
    of_slots = tinted_segments(image, masks.clamp(min=1) - 1)[0]
    assert torch.equal(objects[:, masks[0] > 0], of_slots[:, masks[0] > 0])


def test_panels_of_one_image_do_not_depend_on_the_others():
    image, attn = make_inputs(batch=3)
    segments = segmentation(attn, 16)
    assert torch.equal(
        tinted_segments(image, segments)[1:2], tinted_segments(image[1:2], segments[1:2])
    )
    assert torch.equal(attended_slots(image, attn)[1:2], attended_slots(image[1:2], attn[1:2]))


def test_segments_have_one_colour_for_each_slot_over_the_gray_image():
    image = torch.full((1, 3, 8, 8), 0.5)
    segments = tinted_segments(image, segmentation(quadrants(), 8))[0]
    colours = segments.flatten(1).unique(dim=1)
    assert colours.shape == (3, 4)
    for rows, columns in [(0, 0), (0, 4), (4, 0), (4, 4)]:
        part = segments[:, rows : rows + 4, columns : columns + 4]
        assert torch.equal(part, part[:, :1, :1].expand_as(part))


def test_the_colour_of_a_slot_does_not_depend_on_the_number_of_slots():
    segments = torch.ones(2, 2, dtype=torch.uint8)
    few, many = (label_map(segments, k).convert("RGB").getpixel((0, 0)) for k in (2, 11))
    assert few == many


def test_24_slots_have_24_colours():
    segments = tinted_segments(torch.zeros(24, 3, 1, 1), torch.arange(24).view(24, 1, 1))
    assert len(segments.flatten(1).unique(dim=0)) == 24


def test_a_label_map_holds_the_numbers_of_slots_in_the_colours_of_segments(tmp_path):
    segments = torch.arange(6).view(2, 3)
    label_map(segments, 7).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        assert (picture.format, picture.mode, picture.size) == ("PNG", "P", (3, 2))
        assert list(picture.tobytes()) == [0, 1, 2, 3, 4, 5]
        colours = torch.frombuffer(bytearray(picture.convert("RGB").tobytes()), dtype=torch.uint8)
    # Black images: the tint is the palette's colour times the opacity.
    tints = tinted_segments(torch.zeros(1, 3, 6, 6), segments.view(1, 1, 6).expand(1, 6, 6))
    expected = tints[0, :, 0].T / 0.6 * 255
    torch.testing.assert_close(colours.view(6, 3).float(), expected, atol=1e-3, rtol=0)


def test_accepts_half_precision_that_requires_grad():
    image, attn = (tensor.bfloat16().requires_grad_() for tensor in make_inputs())
    masks = torch.rand(2, 3, 16, 16).bfloat16().requires_grad_()
    segments = mask_segmentation(masks)
    for panels in (
        tinted_segments(image, segments),
        tinted_objects(image, segments),
        attended_slots(image, attn),
        painted_slots(image.unsqueeze(1).expand(2, 3, 3, 16, 16), masks),
    ):
        assert panels.dtype == torch.float32
        assert not panels.requires_grad


def test_panels_stand_in_the_order_of_their_columns_and_then_of_the_slots(tmp_path):
    columns, slots = make_panels(size=128)
    save_panels(tmp_path / "a.png", columns, slots)
    expected = torch.cat((torch.stack(list(columns.values()), 1), slots), 1)
    for row in range(2):
        for column in range(7):
            panel = expected[row, column].mul(255).round().to(torch.uint8)
            assert torch.equal(read_panel(tmp_path / "a.png", row, column, 128), panel)


@pytest.mark.parametrize(("size", "factor"), [(32, 4), (48, 2), (64, 2), (96, 1), (160, 1)])
def test_writes_small_panels_enlarged_by_a_whole_factor(tmp_path, size, factor):
    columns, slots = make_panels(size=size)
    save_panels(tmp_path / "a.png", columns, slots)

    side = size * factor
    assert read_pixels(tmp_path / "a.png").shape == (
        32 + 2 * side + 4 + 12,
        12 + 7 * side + 6 * 4 + 12,
        3,
    )
    panels = torch.cat((torch.stack(list(columns.values()), 1), slots), 1)
    panels = panels.mul(255).round().to(torch.uint8)
    for row, column in [(0, 0), (1, 3), (1, 6)]:
        panel = read_panel(tmp_path / "a.png", row, column, side)
        assert torch.equal(panel[:, ::factor, ::factor], panels[row, column])
        assert torch.equal(
            panel[:, factor - 1 :: factor, factor - 1 :: factor], panel[:, ::factor, ::factor]
        )


def test_writes_headings_only_when_asked(tmp_path):
    panels = make_panels(size=96)
    save_panels(tmp_path / "with.png", *panels)
    save_panels(tmp_path / "without.png", *panels, labels=False)

    labelled, plain = read_pixels(tmp_path / "with.png"), read_pixels(tmp_path / "without.png")
    assert torch.equal(labelled[32:], plain[12:])
    background = torch.tensor(BACKGROUND, dtype=torch.uint8)
    assert torch.equal(plain[:12], background.expand_as(plain[:12]))
    for column in range(7):
        left = 12 + column * 100
        heading = labelled[:27, left : left + 96]
        ink = (heading != background).any(-1).sum()
        assert 60 < ink < 600


def test_the_bar_under_a_heading_has_the_colour_of_the_slot_in_the_segments(tmp_path):
    # Black images: the tint is the palette's colour times the opacity.
    image = torch.zeros(1, 3, 96, 96)
    segments = tinted_segments(image, torch.full((1, 96, 96), 2))
    save_panels(
        tmp_path / "a.png", {"image": image, "segments": segments}, torch.ones(1, 3, 3, 96, 96)
    )
    bar = read_pixels(tmp_path / "a.png")[28, 12 + 4 * 100 + 48].float()
    tint = read_panel(tmp_path / "a.png", 0, 1, 96)[:, 0, 0].float()
    torch.testing.assert_close(tint / bar, torch.full((3,), 0.6), atol=0.02, rtol=0)


def test_a_column_is_headed_by_its_name(tmp_path):
    columns, slots = make_panels(size=96)
    more = dict(list(columns.items())[:3]) | {
        "objects": columns["image"],
        "segments": columns["segments"],
    }
    save_panels(tmp_path / "with.png", more, slots)
    save_panels(tmp_path / "without.png", columns, slots)
    with_objects, without = (read_pixels(tmp_path / name) for name in ("with.png", "without.png"))
    assert with_objects.shape[1] == without.shape[1] + 100
    heading = with_objects[:32, 312:408]
    assert (heading != torch.tensor(BACKGROUND, dtype=torch.uint8)).any()
    assert torch.equal(with_objects[:, 412:], without[:, 312:])


def test_row_labels_stand_beside_their_rows(tmp_path):
    panels = make_panels(size=96)
    save_panels(tmp_path / "with.png", *panels, row_labels=["best 0.93", "worst"])
    save_panels(tmp_path / "without.png", *panels)
    labelled, plain = read_pixels(tmp_path / "with.png"), read_pixels(tmp_path / "without.png")
    margin = labelled.shape[1] - plain.shape[1] + 12
    assert torch.equal(labelled[:, margin:], plain[:, 12:])
    is_ink = (labelled[:, :margin] != torch.tensor(BACKGROUND, dtype=torch.uint8)).any(-1)
    best, worst = (is_ink[top + 38 : top + 58].sum() for top in (32, 132))
    assert best > worst > 40
    assert is_ink.sum() == best + worst
    assert not is_ink[:, :12].any()
    assert not is_ink[:, margin - 12 :].any()


def test_clamps_values_that_no_pixel_can_hold(tmp_path):
    columns, slots = make_panels(batch=1, size=96)
    recon = columns["dVAE"] = torch.full_like(columns["image"], 1.5)
    recon[..., :48] = -0.5
    recon[..., 0, 0] = float("nan")
    save_panels(tmp_path / "a.png", columns, slots)
    panel = read_panel(tmp_path / "a.png", 0, 1, 96)
    assert panel[..., :48].unique().tolist() == [0]
    assert panel[..., 48:].unique().tolist() == [255]


def test_makes_missing_folders_and_replaces_a_file(tmp_path):
    path = tmp_path / "samples" / "step.png"
    save_panels(path, *make_panels(seed=0))
    first = path.read_bytes()
    save_panels(path, *make_panels(seed=1))
    assert path.read_bytes() != first
    assert list(path.parent.iterdir()) == [path]


def test_keeps_the_old_file_when_the_disk_is_full(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    save_panels(path, *make_panels(seed=0))
    before = path.read_bytes()

    def write_half(image, file, format):
        file.write_bytes(before[:100])
        raise OSError(errno.ENOSPC, "No space left on device", str(file))

    monkeypatch.setattr(Image.Image, "save", write_half)
    with pytest.raises(OSError, match="No space left on device"):
        save_panels(path, *make_panels(seed=1))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_pillow_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(ImportError, match=r'PIL is not .*: pip install "fastslots\[train\]"'):
        save_panels(tmp_path / "a.png", *make_panels())
    assert attended_slots(*make_inputs()).shape[1] == 3


@pytest.mark.slow
def test_importing_the_modules_needs_neither_pillow_nor_torchvision():
    program = (
        "import sys; sys.modules.update(PIL=None, torchvision=None);"
        "import fastslots.pictures, fastslots.data.folder"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 1, 16, 16), (2, 3, 16, 8)])
def test_rejects_images_of_the_wrong_shape(shape, tmp_path):
    columns, slots = make_panels()
    image, attn = torch.zeros(shape), make_inputs()[1]
    labels = torch.zeros(2, 16, 16, dtype=torch.uint8)
    for call in (
        lambda: tinted_segments(image, labels),
        lambda: tinted_objects(image, labels),
        lambda: attended_slots(image, attn),
        lambda: save_panels(tmp_path / "a.png", columns | {"image": image}, slots),
    ):
        with pytest.raises(ValueError, match=r"^image must be \[B, 3, S, S\]; got \[.*\]$"):
            call()


def test_rejects_a_column_of_another_shape(tmp_path):
    columns, slots = make_panels()
    columns["recon"] = torch.zeros(2, 3, 8, 8)
    message = r"^recon must have the shape of image, \[2, 3, 16, 16\]; got \[2, 3, 8, 8\]$"
    with pytest.raises(ValueError, match=message):
        save_panels(tmp_path / "a.png", columns, slots)


@pytest.mark.parametrize("shape", [(2, 3, 16, 16), (2, 0, 3, 16, 16), (2, 3, 1, 16, 16)])
def test_rejects_slots_of_the_wrong_shape(shape, tmp_path):
    slots, rule = torch.zeros(shape), r"must be \[B, K, 3, S, S\] with K at least 1; got \["
    with pytest.raises(ValueError, match=rf"^slots {rule}"):
        save_panels(tmp_path / "a.png", make_panels()[0], slots)
    with pytest.raises(ValueError, match=rf"^slot_images {rule}"):
        painted_slots(slots, torch.zeros(2, 3, 16, 16))


@pytest.mark.parametrize("shape", [(1, 5, 3, 16, 16), (2, 5, 3, 8, 8)])
def test_rejects_slots_of_other_images(shape, tmp_path):
    message = r"^slots must be \[2, K, 3, 16, 16\], as image; got \[.*\]$"
    with pytest.raises(ValueError, match=message):
        save_panels(tmp_path / "a.png", make_panels()[0], torch.zeros(shape))


def test_rejects_a_picture_without_columns(tmp_path):
    with pytest.raises(ValueError, match=r"^columns must hold one at least; got none$"):
        save_panels(tmp_path / "a.png", {}, torch.zeros(2, 3, 3, 16, 16))


def test_rejects_attention_of_another_batch_size():
    image, attn = make_inputs()
    with pytest.raises(ValueError, match=r"^attn must be \[2, N, K\], as image; got \[1, 16, 3\]$"):
        attended_slots(image, attn[:1])


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (2, 2, 16, 16), (2, 3, 16)])
def test_rejects_masks_that_do_not_fit_the_slots(shape):
    slot_images = torch.zeros(2, 3, 3, 16, 16)
    with pytest.raises(
        ValueError, match=r"^masks must be \[2, 3, 16, 16\], as slot_images; got \["
    ):
        painted_slots(slot_images, torch.zeros(shape))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.zeros(2, 8, 8, dtype=torch.uint8), r"be integers .*; got torch.uint8 \[2, 8, 8\]"),
        (torch.zeros(2, 16, 16), r"be integers \[2, 16, 16\], .* got torch.float32 \[2, 16, 16\]"),
        (torch.full((2, 16, 16), 256), r"lie in \[0, 256\); got 256 to 256"),
        (torch.full((2, 16, 16), -1), r"lie in \[0, 256\); got -1 to -1"),
    ],
    ids=["shape", "dtype", "many", "negative"],
)
def test_rejects_labels_that_do_not_fit_the_image(labels, message):
    image, _ = make_inputs()
    with pytest.raises(ValueError, match=f"^masks must {message}$"):
        tinted_objects(image, labels)
    with pytest.raises(ValueError, match=f"^segments must {message}$"):
        tinted_segments(image, labels)


@pytest.mark.parametrize("shape", [(1, 4, 4), (1, 0, 4, 4), (1, 257, 4, 4)])
def test_rejects_masks_of_the_wrong_shape(shape):
    message = r"^masks must be \[B, K, S, S\] with K from 1 to 256; got \["
    with pytest.raises(ValueError, match=message):
        mask_segmentation(torch.zeros(shape))


@pytest.mark.parametrize(
    ("segments", "num_slots", "message"),
    [
        (torch.zeros(2, 2), 3, r"segments must be integers \[S, S\]; got torch.float32 \[2, 2\]"),
        (
            torch.zeros(1, 2, 2).int(),
            3,
            r"segments must be integers .*; got torch.int32 \[1, 2, 2\]",
        ),
        (torch.tensor([[0, 3]]), 3, r"segments must lie in \[0, num_slots=3\); got 0 to 3"),
        (torch.tensor([[-1, 2]]), 3, r"segments must lie in \[0, num_slots=3\); got -1 to 2"),
        (torch.tensor([[0]]), 257, "num_slots must be from 1 to 256; got 257"),
        (torch.tensor([[0]]), 0, "num_slots must be from 1 to 256; got 0"),
    ],
    ids=["dtype", "shape", "high", "low", "many", "none"],
)
def test_rejects_segments_that_no_label_map_holds(segments, num_slots, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        label_map(segments, num_slots)


def test_rejects_masks_and_attention_that_hold_nan():
    with pytest.raises(
        ValueError, match=r"^masks must hold no NaN; got some: the slots or weights"
    ):
        mask_segmentation(torch.full((1, 2, 4, 4), torch.nan))
    for call in (segmentation, lambda attn, _: attended_slots(torch.zeros(1, 3, 4, 4), attn)):
        with pytest.raises(
            ValueError, match=r"^attn must hold no NaN; got some: the slots or weig"
        ):
            call(torch.full((1, 4, 2), torch.nan), 4)


def test_rejects_another_number_of_row_labels_than_rows(tmp_path):
    with pytest.raises(ValueError, match=r"^row_labels must be one for each of the 2 .*; got 1$"):
        save_panels(tmp_path / "a.png", *make_panels(), row_labels=["best"])


@pytest.mark.parametrize("shape", [(1, 4), (1, 4, 0), (1, 4, 257), (1, 4, 2, 2)])
def test_rejects_attention_of_the_wrong_shape(shape):
    with pytest.raises(ValueError, match=r"^attn must be \[B, N, K\] with K from 1 to 256; got \["):
        segmentation(torch.zeros(shape), 4)


@pytest.mark.parametrize("num_tokens", [0, 5, 8])
def test_rejects_a_number_of_tokens_that_is_no_square(num_tokens):
    with pytest.raises(ValueError, match=rf"square number of tokens; got N = {num_tokens}$"):
        segmentation(torch.zeros(1, num_tokens, 2), 4)


@pytest.mark.parametrize("image_size", [0, 3, 6])
def test_rejects_an_image_size_that_the_tokens_do_not_divide(image_size):
    with pytest.raises(ValueError, match=rf"^image_size must be a multiple of 4, .* {image_size}$"):
        segmentation(torch.zeros(1, 16, 2), image_size)


def test_rejects_an_empty_batch(tmp_path):
    with pytest.raises(ValueError, match=r"^image must hold at least one image; got 0$"):
        save_panels(tmp_path / "a.png", *make_panels(batch=0))
    assert not (tmp_path / "a.png").exists()
