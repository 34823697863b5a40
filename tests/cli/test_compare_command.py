import json

import pytest


@pytest.mark.slow
def test_a_dry_run_takes_seconds_and_leaves_everything(fastslots, tmp_path):
    result = fastslots(
        "compare",
        "--tiny",
        "--device",
        "cpu",
        "--no-clip",
        "--seed",
        3,
        "--output",
        "out",
        "--commit",
        "abc",
    )
    assert result.code == 0, result.err
    assert "| unrolled | 12 |" in result.out
    content = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert (content["settings"]["clip"], content["settings"]["seed"]) == (None, 3)
    assert content["environment"]["commit"] == "abc"
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names >= {"implicit.png", "unrolled.png", "comparison.png", "implicit", "unrolled"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--clip", "2", "--no-clip"], "--clip and --no-clip exclude each other; got --clip 2.0"),
        (["--vocab-size", "0"], "vocab_size must be at least 1; got 0"),
        (["--minutes", "0"], "minutes must be above 0 and finite; got 0.0"),
        (["--device", "tpu"], "device must be"),
    ],
)
def test_rejects(fastslots, arguments, message):
    result = fastslots("compare", "--tiny", "--device", "cpu", *arguments)
    assert result.code == 2
    assert message in result.err


def test_a_folder_that_cannot_be_written_is_an_error_before_training(fastslots, tmp_path):
    (tmp_path / "file").touch()
    result = fastslots(
        "compare", "--tiny", "--device", "cpu", "--output", tmp_path / "file" / "out"
    )
    assert result.code == 2
    assert "file" in result.err
