import os
import struct
import warnings
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms.functional import resize, to_tensor

from fastslots.data import folder
from fastslots.data.folder import CorruptImageError, ImageFolder, load_image


def noise(size=(24, 20), mode="RGB", seed=0):
    """An image of uniform noise; size is (width, height)."""
    bands = len(Image.new(mode, (1, 1)).getbands())
    generator = torch.Generator().manual_seed(seed)
    data = torch.randint(256, (size[0] * size[1] * bands,), generator=generator)
    return Image.frombytes(mode, size, bytes(data.tolist()))


def write_folder(root, count=20):
    """Writes 00.png, 01.png, ... of one gray level each, 10 times the number in the name."""
    for i in range(count):
        Image.new("L", (6, 6), 10 * i).save(root / f"{i:02}.png")


def truncate(path):
    """Keeps the header of an image file and loses the end of its data."""
    noise((40, 40)).save(path)
    path.write_bytes(path.read_bytes()[:-300])


def names(paths):
    return [path.name for path in paths]


def level(image):
    """The number in the name of a file of write_folder, from its pixels."""
    return round(float(image.mean()) * 25.5)


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


def test_finds_images_below_the_folder_with_any_case_of_extension(tmp_path):
    (tmp_path / "b" / "c").mkdir(parents=True)
    kept = ["a.PNG", "b/x.jpg", "b/c/y.JPeG"]
    for name in [*kept, ".hidden.png", "notes.txt.jpg.bak"]:
        noise().save(tmp_path / name, format="PNG")
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "folder.png").mkdir()

    images = ImageFolder(tmp_path, image_size=8, split="all")

    assert [path.relative_to(tmp_path).as_posix() for path in images.paths] == [
        "a.PNG",
        "b/c/y.JPeG",
        "b/x.jpg",
    ]


def test_follows_links_and_lists_every_folder_once(tmp_path):
    (tmp_path / "set" / "sub").mkdir(parents=True)
    (tmp_path / "far").mkdir()
    noise().save(tmp_path / "set" / "sub" / "a.png")
    noise().save(tmp_path / "far" / "b.png")
    (tmp_path / "set" / "sub" / "up").symlink_to(tmp_path / "set")
    (tmp_path / "set" / "sub" / "self").symlink_to(".")
    (tmp_path / "set" / "link").symlink_to(tmp_path / "far")
    images = ImageFolder(tmp_path / "set", image_size=8, split="all")
    assert names(images.paths) == ["b.png", "a.png"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="the system has no named pipes")
def test_does_not_wait_for_a_named_pipe(tmp_path):
    noise().save(tmp_path / "a.png")
    os.mkfifo(tmp_path / "b.png")
    assert names(ImageFolder(tmp_path, image_size=8, split="all").paths) == ["a.png"]


@pytest.mark.parametrize("count", [7, 20, 90])
def test_splits_sorted_names_70_15_15(tmp_path, count):
    write_folder(tmp_path, count)
    paths = sorted(tmp_path.iterdir())
    parts = [ImageFolder(tmp_path, image_size=8, split=s).paths for s in ("train", "val", "test")]
    assert parts == [
        paths[: int(count * 0.7)],
        paths[int(count * 0.7) : int(count * 0.85)],
        paths[int(count * 0.85) :],
    ]
    assert ImageFolder(tmp_path, image_size=8, split="all").paths == paths


def test_a_corrupt_file_moves_no_other_image_to_another_split(tmp_path):
    write_folder(tmp_path)
    before = [ImageFolder(tmp_path, image_size=8, split=s).paths for s in ("val", "test")]
    (tmp_path / "03.png").write_bytes(b"")
    with pytest.warns(UserWarning, match=r"1 of 14 files of split 'train' are corrupt"):
        train = ImageFolder(tmp_path, image_size=8, split="train")
    assert [ImageFolder(tmp_path, image_size=8, split=s).paths for s in ("val", "test")] == before
    assert len(train) == 13
    assert tmp_path / "03.png" not in train.paths


def test_returns_items_and_batches_in_order(tmp_path):
    write_folder(tmp_path)
    images = ImageFolder(tmp_path, image_size=4, split="all")
    assert len(images) == 20
    assert level(images[3]) == 3
    assert level(images[-1]) == 19
    assert [level(image) for image in images.__getitems__([5, 0, 19, 5])] == [5, 0, 19, 5]


@pytest.mark.parametrize("index", [2, -3])
def test_rejects_an_index_out_of_range(tmp_path, index):
    write_folder(tmp_path, 2)
    with pytest.raises(IndexError, match=f"below 2 images; got {index}"):
        ImageFolder(tmp_path, image_size=4, split="all")[index]


@pytest.mark.parametrize("cpus", [1, 4])
def test_batches_do_not_depend_on_the_number_of_threads(tmp_path, monkeypatch, cpus):
    monkeypatch.setattr(folder, "_num_cpus", lambda: cpus)
    write_folder(tmp_path)
    truncate(tmp_path / "02.png")
    images = ImageFolder(tmp_path, image_size=4, split="all")
    with pytest.warns(UserWarning, match=r"02\.png"):
        batch = images.__getitems__([0, 1, 2, 3, 2])
    assert [level(image) for image in batch] == [0, 1, 3, 3, 3]


def test_feeds_a_data_loader_with_workers(tmp_path):
    write_folder(tmp_path)
    images = ImageFolder(tmp_path, image_size=4, split="all")
    loader = DataLoader(images, batch_size=10, num_workers=1)
    assert [level(image) for batch in loader for image in batch] == list(range(20))


def test_names_and_counts_files_without_an_image_header(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "00.png").write_bytes(b"")
    (tmp_path / "01.png").write_text("no image at all")
    (tmp_path / "02.png").write_bytes((tmp_path / "02.png").read_bytes()[:20])
    with pytest.warns(UserWarning, match=r"^3 of 20 files of split 'all' are corrupt") as caught:
        images = ImageFolder(tmp_path, image_size=8, split="all")
    assert len(caught) == 1
    assert names(images.corrupt) == ["00.png", "01.png", "02.png"]
    assert all(name in str(caught[0].message) for name in names(images.corrupt))
    assert len(images) == 17


def test_the_warning_names_a_few_of_many_corrupt_files(tmp_path):
    write_folder(tmp_path)
    for i in range(10):
        (tmp_path / f"{i:02}.png").write_bytes(b"")
    with pytest.warns(UserWarning, match=r"10 of 20.*04\.png.*; \.\.\.$") as caught:
        images = ImageFolder(tmp_path, image_size=8, split="all")
    assert "05.png" not in str(caught[0].message)
    assert len(images.corrupt) == 10


def test_a_decompression_bomb_is_corrupt(tmp_path, monkeypatch):
    write_folder(tmp_path, 2)
    noise((40, 40)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.warns(UserWarning, match="decompression bomb"):
        images = ImageFolder(tmp_path, image_size=8, split="all")
    assert names(images.corrupt) == ["bomb.png"]


def test_a_truncated_file_is_named_once_and_replaced_by_the_next_readable_image(tmp_path):
    write_folder(tmp_path, 5)
    truncate(tmp_path / "01.png")
    truncate(tmp_path / "02.png")
    images = ImageFolder(tmp_path, image_size=8, split="all")
    assert images.corrupt == {}

    with pytest.warns(UserWarning, match="the next image replaces it") as caught:
        assert level(images[1]) == 3
    assert [("01.png" in str(w.message), "02.png" in str(w.message)) for w in caught] == [
        (True, False),
        (False, True),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert level(images[1]) == 3
        assert level(images[2]) == 3
    assert names(images.corrupt) == ["01.png", "02.png"]
    assert len(images) == 5


def test_the_first_image_replaces_a_corrupt_last_one(tmp_path):
    write_folder(tmp_path, 5)
    truncate(tmp_path / "04.png")
    images = ImageFolder(tmp_path, image_size=8, split="all")
    with pytest.warns(UserWarning, match=r"04\.png' cannot be decoded: .*; the next image"):
        assert level(images[4]) == 0


def test_strict_raises_for_a_file_without_a_header(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "05.png").write_bytes(b"")
    with pytest.raises(CorruptImageError, match=r"05\.png' cannot be decoded: not a PNG or JPEG"):
        ImageFolder(tmp_path, image_size=8, strict=True)


def test_strict_raises_for_a_truncated_file(tmp_path):
    write_folder(tmp_path)
    truncate(tmp_path / "05.png")
    images = ImageFolder(tmp_path, image_size=8, strict=True)
    with pytest.raises(CorruptImageError, match=r"05\.png' cannot be decoded"):
        images.__getitems__([4, 5])


def test_raises_when_no_file_of_the_split_is_an_image(tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(CorruptImageError, match=r"every one of the 1 images .*a\.png"):
        ImageFolder(tmp_path, image_size=8, split="all")


def test_raises_when_no_file_of_the_split_can_be_decoded(tmp_path):
    truncate(tmp_path / "a.png")
    truncate(tmp_path / "b.png")
    images = ImageFolder(tmp_path, image_size=8, split="all")
    with (
        pytest.warns(UserWarning, match="replaces"),
        pytest.raises(CorruptImageError, match=r"every one of the 2 images .*a\.png"),
    ):
        images[0]


def test_rejects_a_missing_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        ImageFolder(tmp_path / "nowhere", image_size=8)


def test_rejects_a_file_as_folder(tmp_path):
    noise().save(tmp_path / "a.png")
    with pytest.raises(NotADirectoryError, match=r"a\.png"):
        ImageFolder(tmp_path / "a.png", image_size=8)


def test_rejects_a_folder_without_images(tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(ValueError, match=r"^no image file \(\.png, \.jpg, \.jpeg\) under '"):
        ImageFolder(tmp_path, image_size=8)


def test_rejects_a_split_left_empty(tmp_path):
    write_folder(tmp_path, 1)
    with pytest.raises(ValueError, match=r"^split 'train' of .* is empty: .* 1 .* 0, 0 and 1$"):
        ImageFolder(tmp_path, image_size=8, split="train")


def test_takes_the_files_it_is_given(tmp_path):
    write_folder(tmp_path, 5)
    images = ImageFolder(tmp_path, image_size=8, names=["04.png", "00.png"])
    assert names(images.paths) == ["04.png", "00.png"]
    with pytest.raises(ValueError, match=r"^names must hold at least one file; got none$"):
        ImageFolder(tmp_path, image_size=8, names=[])


def gone(path):
    path.symlink_to(path.with_name("gone"))


def itself(path):
    path.symlink_to(path.name)


def through_a_file(path):
    path.symlink_to(path.with_name("05.png") / "a")


def too_long(path):
    path.symlink_to(300 * "a")


@pytest.mark.parametrize("link", [gone, itself, through_a_file, too_long])
def test_a_link_that_leads_nowhere_is_a_corrupt_file(tmp_path, link):
    write_folder(tmp_path)
    (tmp_path / "03.png").unlink()
    link(tmp_path / "03.png")
    with pytest.warns(UserWarning, match=r"^1 of 14 files .*03\.png' cannot be read: ") as caught:
        train = ImageFolder(tmp_path, image_size=8, split="train")
    assert len(caught) == 1
    assert names(train.corrupt) == ["03.png"]
    assert len(train) == 13
    assert len(ImageFolder(tmp_path, image_size=8, split="val")) == 3
    with pytest.raises(CorruptImageError, match=r"03\.png' cannot be read: "):
        ImageFolder(tmp_path, image_size=8, strict=True)


def test_names_a_file_that_may_not_be_read(tmp_path, monkeypatch):
    write_folder(tmp_path, 3)

    def no_permission(path, *args, **kwargs):
        raise PermissionError(13, "Permission denied")

    # Root may read every file, so permission bits would not do.
    monkeypatch.setattr(Image, "open", no_permission)
    with pytest.raises(PermissionError, match=r"Permission denied: .*00\.png"):
        ImageFolder(tmp_path, image_size=8, split="all")


@pytest.mark.parametrize("instead", [Path.unlink, lambda path: (path.unlink(), path.mkdir())])
def test_a_file_that_disappears_is_replaced_by_the_next(tmp_path, instead):
    write_folder(tmp_path, 5)
    images = ImageFolder(tmp_path, image_size=8, split="all")
    strict = ImageFolder(tmp_path, image_size=8, split="all", strict=True)
    instead(tmp_path / "01.png")
    with pytest.warns(UserWarning, match=r"01\.png' cannot be read: .*; the next image replaces"):
        assert level(images[1]) == 2
    assert names(images.corrupt) == ["01.png"]
    with pytest.raises(CorruptImageError, match=r"01\.png' cannot be read"):
        strict[1]


def remove(path):
    path.rename(path.with_name("elsewhere"))


def empty(path):
    """As where a disk was mounted."""
    remove(path)
    path.mkdir()


@pytest.mark.parametrize("lose", [remove, empty])
def test_a_folder_that_disappears_is_no_corrupt_file(tmp_path, lose):
    (tmp_path / "set").mkdir()
    write_folder(tmp_path / "set", 3)
    images = ImageFolder(tmp_path / "set", image_size=8, split="all")
    lose(tmp_path / "set")
    with pytest.raises(FileNotFoundError, match=r"01\.png"):
        images[1]
    assert images.corrupt == {}


@pytest.mark.parametrize("image_size", [0, -8, 8.0, True, None])
def test_rejects_an_image_size_that_is_no_positive_integer(tmp_path, image_size):
    noise().save(tmp_path / "a.png")
    is_int = type(image_size) is int
    rule, error = ("at least 1", ValueError) if is_int else ("an int", TypeError)
    message = f"^image_size must be {rule}; got {image_size!r}$"
    with pytest.raises(error, match=message):
        ImageFolder(tmp_path, image_size=image_size)
    with pytest.raises(error, match=message):
        load_image(tmp_path / "a.png", image_size)


def test_rejects_an_unknown_split(tmp_path):
    with pytest.raises(ValueError, match=r"^split must be one of \('train', .*'all'\); got 'dev'$"):
        ImageFolder(tmp_path, image_size=8, split="dev")


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
