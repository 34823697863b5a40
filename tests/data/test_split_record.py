"""What a run keeps about the files it is trained on."""

from pathlib import Path

import pytest

from fastslots.data.split_record import FILE, find_changes, find_trained, read_record, write_record

BEFORE = {"train": ["a.png", "c.png"], "val": ["e.png"], "test": ["g/1.png", "g/2.png"]}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({}, None),
        ({"train": ["a.png", "b.png", "c.png"]}, "1 added, the first to train: 'b.png'"),
        ({"train": ["a.png"], "val": []}, "2 removed, the first from train: 'c.png'"),
        ({"test": ["g/1.png"]}, "1 removed, the first from test: 'g/2.png'"),
        (
            {
                "train": ["a.png", "b.png"],
                "val": ["c.png"],
                "test": ["e.png", "g/1.png", "g/2.png"],
            },
            "1 added, the first to train: 'b.png'; moved by that: 1 from train to val, 1 from val to test",
        ),
    ],
)
def test_says_what_was_added_removed_and_moved(changed, said):
    assert find_changes(BEFORE, BEFORE | changed) == said


def test_a_split_that_was_not_there_may_come_later():
    without = BEFORE | {"test": []}
    assert find_changes(without, BEFORE) is None
    moved = {"train": ["a.png"], "val": ["e.png"], "test": ["c.png"]}
    assert find_changes(without, moved) == "1 removed, the first from train: 'c.png'"


def test_names_of_any_bytes_are_kept(tmp_path):
    files = {"train": ["a\udcff.png", "b\n.png"], "val": ["\u00e9.png"], "test": []}
    assert read_record(tmp_path) is None
    write_record(tmp_path, files)
    assert read_record(tmp_path) == files
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


@pytest.mark.parametrize("content", ["{", "[]", '{"train": []}', '{"train": 1}', '{"train": null}'])
def test_a_damaged_record_is_named(tmp_path, content):
    (tmp_path / FILE).write_text(content)
    with pytest.raises(ValueError, match=r"images\.json is damaged: "):
        read_record(tmp_path)


@pytest.mark.parametrize(
    ("root", "names"),
    [
        ("set", ["b.png", "g/c.png"]),
        ("set/g", ["c.png", "d.png"]),
        (".", ["set/b.png", "set/g/c.png"]),
    ],
)
def test_finds_the_trained_images_in_a_folder_around_or_within(tmp_path, root, names):
    record = {"train": ["a.png", "g/c.png"], "val": ["b.png"], "test": []}
    (tmp_path / "set" / "g").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "set")
    (known,) = find_trained(record, tmp_path / "link", names, tmp_path / root)
    assert Path(known).name == "c.png"
    assert find_trained(record, tmp_path / "elsewhere", names, tmp_path / root) == []
