"""Files that are whole or not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastslots.files import (
    check_writable,
    remove_partial,
    write_text,
    write_together,
    write_whole,
)


def test_a_file_is_replaced_by_a_whole_one_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for text in ("old", "new"):
        write_text(path, text)
        assert path.read_text() == text
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError("full"), ValueError("no")], ids=repr)
def test_a_write_that_fails_leaves_the_old_file_alone(
    tmp_path: Path, error: BaseException | type[BaseException]
) -> None:
    path = tmp_path / "a.json"
    write_text(path, "old")

    def write(partial: Path) -> None:
        partial.write_text("ne")
        raise error

    with pytest.raises(error if isinstance(error, type) else type(error)):
        write_whole(path, write)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_no_file_of_several_takes_its_name_before_all_are_written(tmp_path: Path) -> None:
    paths = [tmp_path / "a.json", tmp_path / "b.bin"]
    write_together({path: lambda partial: partial.write_text("old") for path in paths})

    def fail(partial: Path) -> None:
        partial.write_text("ne")
        raise OSError("full")

    with pytest.raises(OSError, match=r"b\.bin could not be written: full"):
        write_together({paths[0]: lambda partial: partial.write_text("new"), paths[1]: fail})
    assert [path.read_text() for path in paths] == ["old", "old"]
    assert sorted(tmp_path.iterdir()) == paths


def test_an_error_of_the_system_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"missing/a\.json could not be written: .*No such file"):
        write_text(tmp_path / "missing" / "a.json", "text")


def test_the_partial_file_keeps_the_suffix_and_is_found_again(tmp_path: Path) -> None:
    kept = tmp_path / "a.png"
    kept.write_text("whole")

    def killed(partial: Path) -> None:
        assert partial.suffix == ".png"
        partial.with_name(partial.name.replace("a.", "b.")).write_text("half")

    with pytest.raises(OSError, match="could not be written"):
        write_whole(kept, killed)  # as it wrote elsewhere
    assert len(list(tmp_path.iterdir())) == 2
    remove_partial(tmp_path)
    assert list(tmp_path.iterdir()) == [kept]


def test_a_folder_for_results_is_made_and_tried(tmp_path: Path) -> None:
    check_writable(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"must be a folder .*; got '.*/file': File exists"):
        check_writable(tmp_path / "file")
