"""Which images of a folder are train, val and test."""

import re

import pytest
import torch
from PIL import Image

from fastslots.data.folder import ImageFolder
from fastslots.data.source import DataSource
from fastslots.data.splits import are_named, files_of, split_images


def make(root, *names):
    """Writes one small image under each name."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4)).save(root / name)


def numbered(folder, count):
    return [f"{folder}/{i:02}.png" for i in range(count)]


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [
        ("train", "val", "test"),
        ("Train", "VALID", "Test"),
        ("training", "validation", "testing"),
        ("images/train", "images/val/deep", "images/test"),
        ("cat/train", "cat/val", "dog/test"),
    ],
)
def test_folders_named_as_splits_are_the_splits(tmp_path, train, val, test):
    make(tmp_path, *numbered(train, 5), *numbered(val, 3), *numbered(test, 2))
    files = split_images(tmp_path)
    assert files == {
        "train": numbered(train, 5),
        "val": numbered(val, 3),
        "test": numbered(test, 2),
    }
    assert are_named(files)
    for split, names in files.items():
        images = ImageFolder(tmp_path, image_size=4, split=split)
        assert images.paths == [tmp_path / name for name in names]
    assert len(ImageFolder(tmp_path, image_size=4, split="all")) == 10


def test_several_folders_of_a_split_are_one(tmp_path):
    make(tmp_path, "a/train/x.png", "b/train/x.png", "val/a.png", "valid/b.png")
    files = split_images(tmp_path)
    assert files["train"] == ["a/train/x.png", "b/train/x.png"]
    assert files["val"] == ["val/a.png", "valid/b.png"]


@pytest.mark.parametrize("others", [[], numbered("test", 4)], ids=["train", "train-test"])
def test_without_val_the_last_of_train_are_held_out(tmp_path, others):
    make(tmp_path, *numbered("train", 20), *others)
    files = split_images(tmp_path)
    train = numbered("train", 20)
    assert files == {"train": train[:17], "val": train[17:], "test": others}


@pytest.mark.parametrize(
    ("there", "asked", "found"),
    [
        (["train", "val"], "test", "2, 2 and 0"),
        (["train"], "test", "1, 1 and 0"),
        (["test"], "train", "0, 0 and 2"),
        (["test"], "val", "0, 0 and 2"),
        (["val", "test"], "train", "0, 2 and 2"),
        (["val"], "test", "0, 2 and 0"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else None,
)
def test_a_split_that_no_folder_is_named_after_is_refused(tmp_path, there, asked, found):
    make(tmp_path, *(name for folder in there for name in numbered(folder, 2)))
    message = (
        rf"^split '{asked}' of .* is empty: by the names of its folders .* train, val and test have {found} "
        rf"image files; add a folder named {asked}, or choose another split or folder$"
    )
    with pytest.raises(ValueError, match=message):
        ImageFolder(tmp_path, image_size=4, split=asked)
    assert len(ImageFolder(tmp_path, image_size=4, split="all")) == 2 * len(there)


@pytest.mark.parametrize("beside", ["extra/b.png", "b.png"])
def test_images_beside_the_splits_are_refused(tmp_path, beside):
    make(tmp_path, *numbered("train", 3), *numbered("test", 2), beside, "extra/c.png")
    message = (
        r"^every image of .* must lie in a folder named train, val or test, as 'train/00.png' does; "
        rf"got 2 in none of them, the first '{re.escape(beside)}': move them .* or rename"
    )
    with pytest.raises(ValueError, match=message):
        ImageFolder(tmp_path, image_size=4)
    assert len(ImageFolder(tmp_path, image_size=4, split="all")) == 7


def test_what_is_no_image_may_lie_beside_the_splits(tmp_path):
    make(tmp_path, *numbered("train", 3), ".thumbnails/a.png")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "notes.txt").write_text("no image")
    assert len(ImageFolder(tmp_path, image_size=4, split="train")) == 2


def test_an_image_in_folders_of_two_splits_is_refused(tmp_path):
    make(tmp_path, *numbered("train", 3), "train/cat/Test/a.png")
    with pytest.raises(
        ValueError, match=r"one of train, val and test at most; got 'train/cat/Test"
    ):
        ImageFolder(tmp_path, image_size=4)


def test_a_link_to_another_split_brings_none_of_its_images(tmp_path):
    make(tmp_path, *numbered("train", 3), *numbered("test", 2))
    (tmp_path / "train" / "more").symlink_to(tmp_path / "test")
    (tmp_path / "val").symlink_to(tmp_path / "test")
    files = split_images(tmp_path)
    assert files["test"] == numbered("test", 2)
    assert [*files["train"], *files["val"]] == numbered("train", 3)


def test_names_of_files_and_of_the_folder_itself_name_no_split(tmp_path):
    names = ["train.png", *(f"a/test{i}.png" for i in range(9))]
    make(tmp_path / "train", *names)
    files = split_images(tmp_path / "train")
    assert not are_named(files)
    assert [len(part) for part in files.values()] == [7, 1, 2]


def test_a_source_opens_what_it_was_told_the_splits_are(tmp_path):
    make(tmp_path, *numbered("train", 4), *numbered("val", 2))
    source, cpu = DataSource(data=str(tmp_path)), torch.device("cpu")
    files = source.split_files()
    make(tmp_path, "val/later.png")
    assert len(source.open("val", 4, cpu, files)) == 2
    assert len(source.open("val", 4, cpu)) == 3
    with pytest.raises(ValueError, match=r"split 'test' of .* is empty"):
        source.open("test", 4, cpu, files)
    assert DataSource().split_files() is None


def test_an_empty_split_by_position_says_how_many_there_are(tmp_path):
    make(tmp_path, "a.png", "b.png")
    files = split_images(tmp_path)
    assert files_of(files, "train", tmp_path) == ["a.png"]
    with pytest.raises(ValueError, match=r"is empty: 70-15-15 of 2 image files gives 1, 0 and 1$"):
        files_of(files, "val", tmp_path)
