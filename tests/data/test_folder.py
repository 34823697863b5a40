"""Folders of images."""

import os
import warnings
from pathlib import Path

import pytest
from PIL import Image
from torch.utils.data import DataLoader

from fastslots.data import folder
from fastslots.data.folder import CorruptImageError, ImageFolder, load_image
from tests.data.files import noise, truncate


def write_folder(root, count=20):
    """Writes 00.png, 01.png, ... of one gray level each, 10 times the number in the name."""
    for i in range(count):
        Image.new("L", (6, 6), 10 * i).save(root / f"{i:02}.png")


def names(paths):
    return [path.name for path in paths]


def level(image):
    """The number in the name of a file of write_folder, from its pixels."""
    return round(float(image.mean()) * 25.5)


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
