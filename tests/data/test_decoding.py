"""PNG and JPEG files as tensors."""

import struct
from pathlib import Path

import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import resize, to_tensor

from fastslots.data.decoding import CorruptImageError, load_image
from tests.data.files import noise, truncate


def corner_colours(image):
    """Colours of the four corners, clockwise from the top left, as RGB letters."""
    corners = (image[:, 0, 0], image[:, 0, -1], image[:, -1, -1], image[:, -1, 0])
    return "".join("RGB"[int(c.argmax())] if c.min() < 0.5 else "W" for c in corners)


def test_reads_an_image_as_resize_without_crop_of_the_authors_loaders_does(tmp_path):
    noise((50, 37)).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        expected = to_tensor(resize(image, [16, 16]))

    actual = load_image(tmp_path / "a.png", 16)

    assert torch.equal(actual, expected)
    assert actual.dtype == torch.float32
    assert actual.is_contiguous()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_reads_every_mode_of_png_as_rgb(tmp_path, mode):
    Image.new("RGB", (8, 8), "white").convert(mode).save(tmp_path / "a.png")
    assert torch.equal(load_image(tmp_path / "a.png", 4), torch.ones(3, 4, 4))


def test_scales_16_bit_gray_by_its_full_range(tmp_path):
    values = torch.tensor([0, 255, 256, 128 * 257, 65535], dtype=torch.uint16)
    Image.frombytes("I;16", (5, 1), bytes(values.view(torch.uint8).tolist())).resize((5, 5)).save(
        tmp_path / "a.png"
    )
    row = load_image(tmp_path / "a.png", 5)[:, 0] * 255
    torch.testing.assert_close(row, torch.tensor([0.0, 1.0, 1.0, 128.0, 255.0]).expand(3, 5))


@pytest.mark.parametrize(
    ("ink", "colour"),
    [((0, 0, 0, 0), (1.0, 1.0, 1.0)), ((0, 255, 255, 0), (1.0, 0.0, 0.0))],
    ids=["white", "red"],
)
def test_converts_a_cmyk_jpeg(tmp_path, ink, colour):
    Image.new("CMYK", (8, 8), ink).save(tmp_path / "a.jpg", quality=100)
    actual = load_image(tmp_path / "a.jpg", 8).mean((1, 2))
    torch.testing.assert_close(actual, torch.tensor(colour), atol=0.02, rtol=0)


def test_drops_an_opaque_alpha_channel_exactly(tmp_path):
    image = noise()
    image.save(tmp_path / "rgb.png")
    image.putalpha(255)
    image.save(tmp_path / "rgba.png")
    assert torch.equal(load_image(tmp_path / "rgba.png", 16), load_image(tmp_path / "rgb.png", 16))


def test_lays_transparent_pixels_on_white(tmp_path):
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.new("RGBA", (4, 4), (255, 0, 0, 51)).save(tmp_path / "tint.png")
    palette = Image.new("L", (4, 4), 7).convert("P")
    palette.save(tmp_path / "palette.png", transparency=palette.getpixel((0, 0)))

    assert torch.equal(load_image(tmp_path / "clear.png", 2), torch.ones(3, 2, 2))
    assert torch.equal(load_image(tmp_path / "palette.png", 2), torch.ones(3, 2, 2))
    tint = load_image(tmp_path / "tint.png", 2)[:, 0, 0]
    torch.testing.assert_close(tint, torch.tensor([1.0, 0.8, 0.8]))


@pytest.mark.parametrize(
    ("orientation", "corners"),
    list(enumerate(["RGBW", "GRWB", "BWRG", "WBGR", "RWBG", "WRGB", "BGRW", "GBWR"], start=1)),
)
def test_applies_the_exif_orientation(tmp_path, orientation, corners):
    stored = Image.new("RGB", (32, 16))
    for box, colour in zip(
        [(0, 0), (16, 0), (16, 8), (0, 8)], ["red", "lime", "blue", "white"], strict=True
    ):
        stored.paste(colour, (*box, box[0] + 16, box[1] + 8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "a.jpg", quality=95, exif=exif)
    assert corner_colours(load_image(tmp_path / "a.jpg", 16)) == corners


@pytest.mark.parametrize(
    ("name", "exif"),
    [
        pytest.param("a.png", b"no tiff header", id="no-header"),
        # One little-endian entry: tag 0x0112 (orientation), type 2 (text), 1 byte, "A".
        pytest.param(
            "a.jpg",
            b"II*\0\x08\0\0\0" + struct.pack("<HHHIII", 1, 0x0112, 2, 1, 0x41, 0),
            id="text",
        ),
    ],
)
def test_reads_an_image_whose_exif_data_are_damaged(tmp_path, name, exif):
    noise().save(tmp_path / "plain.png")
    noise().save(tmp_path / name, exif=b"Exif\0\0" + exif, quality=100, subsampling=0)
    actual, expected = (load_image(tmp_path / n, 8) for n in (name, "plain.png"))
    torch.testing.assert_close(actual, expected, atol=0.02, rtol=0)


@pytest.mark.parametrize(
    ("write", "error", "message"),
    [
        pytest.param(Path.touch, CorruptImageError, "not a PNG or JPEG image", id="empty"),
        pytest.param(truncate, CorruptImageError, "cannot be decoded", id="truncated"),
        pytest.param(Path.mkdir, IsADirectoryError, "Is a directory", id="folder"),
        pytest.param(lambda path: None, FileNotFoundError, "No such file", id="missing"),
        pytest.param(
            lambda path: noise().save(path, "GIF"),
            CorruptImageError,
            "not a PNG or JPEG image",
            id="other-format",
        ),
    ],
)
def test_load_image_names_a_file_it_cannot_read(tmp_path, write, error, message):
    write(tmp_path / "a.png")
    with pytest.raises(error, match=message) as raised:
        load_image(tmp_path / "a.png", 8)
    assert "a.png" in str(raised.value)
