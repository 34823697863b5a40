import errno
import subprocess
import sys

import pytest
import torch
from PIL import Image

from fastslots.pictures import BACKGROUND, save_panels, segmentation, slot_panels


def make_inputs(batch=2, size=16, num_slots=3, side=4, seed=0):
    """Random images (image, recon, through_slots) and attention."""
    generator = torch.Generator().manual_seed(seed)
    images = [torch.rand(batch, 3, size, size, generator=generator) for _ in range(3)]
    logits = torch.randn(batch, side * side, num_slots, generator=generator)
    return *images, (3 * logits).softmax(-1)


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


def test_first_panels_are_the_image_and_its_reconstructions():
    image, recon, through_slots, attn = make_inputs()
    panels = slot_panels(image, recon, through_slots, attn)
    assert panels.shape == (2, 7, 3, 16, 16)
    assert panels.dtype == torch.float32
    assert torch.equal(panels[:, :3], torch.stack((image, recon, through_slots), 1))


def test_slot_panels_are_white_where_the_slot_attends_to_nothing():
    image = torch.rand(1, 3, 8, 8)
    panels = slot_panels(image, image, image, quadrants())[0, 4:]
    expected = torch.ones(4, 3, 8, 8)
    for slot, rows, columns in [(2, 0, 0), (0, 0, 4), (3, 4, 0), (1, 4, 4)]:
        area = (slice(None), slice(rows, rows + 4), slice(columns, columns + 4))
        expected[slot][area] = image[0][area]
    assert torch.equal(panels, expected)


def test_slot_panels_fade_with_attention():
    image = torch.full((1, 3, 4, 4), 0.2)
    panels = slot_panels(image, image, image, torch.tensor([[[0.25, 0.75]]]))
    torch.testing.assert_close(panels[0, 4:, 0, 0, 0], torch.tensor([0.8, 0.4]))


def test_masks_add_a_panel_with_one_colour_per_object_and_none_on_the_background():
    image = torch.rand(1, 3, 2, 2)
    masks = torch.tensor([[[0, 1], [1, 2]]], dtype=torch.uint8)
    panels = slot_panels(image, image, image, torch.ones(1, 1, 2) / 2, masks)
    assert panels.shape == (1, 7, 3, 2, 2)
    objects, gray = panels[0, 3], image.mean(1)[0]
    tint = objects - gray * 0.4
    assert torch.equal(objects[:, 0, 0], gray[0, 0].expand(3))
    torch.testing.assert_close(tint[:, 0, 1], tint[:, 1, 0])
    assert not torch.allclose(tint[:, 0, 1], tint[:, 1, 1])
    without = slot_panels(image, image, image, torch.ones(1, 1, 2) / 2)
    assert torch.equal(panels[:, [0, 1, 2, 4, 5, 6]], without)


def test_slot_panels_of_one_image_do_not_depend_on_the_others():
    inputs = make_inputs(batch=3)
    alone = slot_panels(*(tensor[1:2] for tensor in inputs))
    assert torch.equal(slot_panels(*inputs)[1:2], alone)


def test_segments_panel_gives_each_slot_one_colour_over_the_gray_image():
    image = torch.full((1, 3, 8, 8), 0.5)
    segments = slot_panels(image, image, image, quadrants())[0, 3]
    colours = segments.flatten(1).unique(dim=1)
    assert colours.shape == (3, 4)
    for rows, columns in [(0, 0), (0, 4), (4, 0), (4, 4)]:
        part = segments[:, rows : rows + 4, columns : columns + 4]
        assert torch.equal(part, part[:, :1, :1].expand_as(part))


def test_the_colour_of_a_slot_does_not_depend_on_the_number_of_slots():
    image = torch.zeros(1, 3, 2, 2)
    few, many = (
        slot_panels(image, image, image, torch.eye(k)[:1].unsqueeze(0))[0, 3] for k in (2, 11)
    )
    assert torch.equal(few, many)


def test_24_slots_have_24_colours():
    image = torch.zeros(24, 3, 1, 1)
    segments = slot_panels(image, image, image, torch.eye(24).unsqueeze(1))[:, 3]
    assert len(segments.flatten(1).unique(dim=0)) == 24


def test_accepts_half_precision_that_requires_grad():
    inputs = [tensor.bfloat16().requires_grad_() for tensor in make_inputs()]
    panels = slot_panels(*inputs)
    assert panels.dtype == torch.float32
    assert not panels.requires_grad


@pytest.mark.parametrize(("size", "factor"), [(32, 4), (48, 2), (64, 2), (96, 1), (160, 1)])
def test_writes_small_panels_enlarged_by_a_whole_factor(tmp_path, size, factor):
    inputs = make_inputs(size=size)
    save_panels(tmp_path / "a.png", *inputs)

    side = size * factor
    assert read_pixels(tmp_path / "a.png").shape == (
        32 + 2 * side + 4 + 12,
        12 + 7 * side + 6 * 4 + 12,
        3,
    )
    panels = slot_panels(*inputs).mul(255).round().to(torch.uint8)
    for row, column in [(0, 0), (1, 3), (1, 6)]:
        panel = read_panel(tmp_path / "a.png", row, column, side)
        assert torch.equal(panel[:, ::factor, ::factor], panels[row, column])
        assert torch.equal(
            panel[:, factor - 1 :: factor, factor - 1 :: factor], panel[:, ::factor, ::factor]
        )


def test_writes_headings_only_when_asked(tmp_path):
    inputs = make_inputs(size=96)
    save_panels(tmp_path / "with.png", *inputs)
    save_panels(tmp_path / "without.png", *inputs, labels=False)

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
    attn = torch.zeros(1, 4, 3)
    attn[..., 2] = 1
    save_panels(tmp_path / "a.png", image, image, image, attn)
    bar = read_pixels(tmp_path / "a.png")[28, 12 + 6 * 100 + 48].float()
    tint = read_panel(tmp_path / "a.png", 0, 3, 96)[:, 0, 0].float()
    torch.testing.assert_close(tint / bar, torch.full((3,), 0.6), atol=0.02, rtol=0)


def test_masks_add_a_heading_before_that_of_the_segments(tmp_path):
    *images, attn = make_inputs(size=96)
    masks = torch.zeros(2, 96, 96, dtype=torch.uint8)
    save_panels(tmp_path / "with.png", *images, attn, masks)
    save_panels(tmp_path / "without.png", *images, attn)
    with_masks, without = read_pixels(tmp_path / "with.png"), read_pixels(tmp_path / "without.png")
    assert with_masks.shape[1] == without.shape[1] + 100
    heading = with_masks[:32, 312:408]
    assert (heading != torch.tensor(BACKGROUND, dtype=torch.uint8)).any()
    assert torch.equal(with_masks[:, 412:], without[:, 312:])


def test_row_labels_stand_beside_their_rows(tmp_path):
    inputs = make_inputs(size=96)
    save_panels(tmp_path / "with.png", *inputs, row_labels=["best 0.93", "worst"])
    save_panels(tmp_path / "without.png", *inputs)
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
    image, _, through_slots, attn = make_inputs(batch=1, size=96)
    recon = torch.full_like(image, 1.5)
    recon[..., :48] = -0.5
    recon[..., 0, 0] = float("nan")
    save_panels(tmp_path / "a.png", image, recon, through_slots, attn)
    panel = read_panel(tmp_path / "a.png", 0, 1, 96)
    assert panel[..., :48].unique().tolist() == [0]
    assert panel[..., 48:].unique().tolist() == [255]


def test_makes_missing_folders_and_replaces_a_file(tmp_path):
    path = tmp_path / "samples" / "step.png"
    save_panels(path, *make_inputs(seed=0))
    first = path.read_bytes()
    save_panels(path, *make_inputs(seed=1))
    assert path.read_bytes() != first
    assert list(path.parent.iterdir()) == [path]


def test_keeps_the_old_file_when_the_disk_is_full(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    save_panels(path, *make_inputs(seed=0))
    before = path.read_bytes()

    def write_half(image, file, format):
        file.write_bytes(before[:100])
        raise OSError(errno.ENOSPC, "No space left on device", str(file))

    monkeypatch.setattr(Image.Image, "save", write_half)
    with pytest.raises(OSError, match="No space left on device"):
        save_panels(path, *make_inputs(seed=1))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_pillow_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(ImportError, match=r'PIL is not .*: pip install "fastslots\[train\]"'):
        save_panels(tmp_path / "a.png", *make_inputs())
    assert slot_panels(*make_inputs()).shape[1] == 7


@pytest.mark.slow
def test_importing_the_modules_needs_neither_pillow_nor_torchvision():
    program = (
        "import sys; sys.modules.update(PIL=None, torchvision=None);"
        "import fastslots.pictures, fastslots.data.folder"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 1, 16, 16), (2, 3, 16, 8)])
def test_rejects_images_of_the_wrong_shape(shape):
    _, recon, through_slots, attn = make_inputs()
    with pytest.raises(ValueError, match=r"^image must be \[B, 3, S, S\]; got \[.*\]$"):
        slot_panels(torch.zeros(shape), recon, through_slots, attn)


@pytest.mark.parametrize("name", ["recon", "through_slots"])
def test_rejects_a_reconstruction_of_another_shape(name):
    inputs = dict(zip(("image", "recon", "through_slots", "attn"), make_inputs(), strict=True))
    inputs[name] = torch.zeros(2, 3, 8, 8)
    message = rf"^{name} must have the shape of image, \[2, 3, 16, 16\]; got \[2, 3, 8, 8\]$"
    with pytest.raises(ValueError, match=message):
        slot_panels(**inputs)


def test_rejects_attention_of_another_batch_size():
    image, recon, through_slots, attn = make_inputs()
    with pytest.raises(ValueError, match=r"^attn must be \[2, N, K\], as image; got \[1, 16, 3\]$"):
        slot_panels(image, recon, through_slots, attn[:1])


@pytest.mark.parametrize(
    ("masks", "got"),
    [
        (torch.zeros(2, 8, 8, dtype=torch.uint8), r"torch.uint8 \[2, 8, 8\]"),
        (torch.zeros(2, 16, 16), r"torch.float32 \[2, 16, 16\]"),
    ],
    ids=["shape", "dtype"],
)
def test_rejects_masks_that_do_not_fit_the_image(masks, got):
    with pytest.raises(ValueError, match=rf"^masks must be integers \[2, 16, 16\], .* got {got}$"):
        slot_panels(*make_inputs(), masks)


def test_rejects_another_number_of_row_labels_than_rows(tmp_path):
    with pytest.raises(ValueError, match=r"^row_labels must be one for each of the 2 .*; got 1$"):
        save_panels(tmp_path / "a.png", *make_inputs(), row_labels=["best"])


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
        save_panels(tmp_path / "a.png", *make_inputs(batch=0))
    assert not (tmp_path / "a.png").exists()
