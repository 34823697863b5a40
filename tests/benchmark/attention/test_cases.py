import dataclasses

import pytest

from fastslots.benchmark import (
    preset,
)
from tests.benchmark.attention.cases import TINY

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "int8"}, "dtype must be one of .*; got 'int8'"),
        ({"batch": 0}, "batch must be at least 1; got 0"),
        ({"num_inputs": 1.5}, "num_inputs must be an int; got 1.5"),
        ({"num_heads": 3}, "slot_size must be a multiple of num_heads 3; got 8"),
        ({"iterations": ()}, "iterations must be at least one number; got none"),
        ({"iterations": (3, 0)}, "iterations must be at least 1; got 0"),
        ({"iterations": (True,)}, "iterations must be an int; got True"),
    ],
)
def test_rejects_a_case_that_breaks_a_rule(change, message):
    with pytest.raises((TypeError, ValueError), match=message):
        dataclasses.replace(TINY, **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"precision": "fp8"}, "precision must be one of .*; got 'fp8'"),
        ({"precision": "tf32", "dtype": "float64"}, "precision 'tf32' needs dtype float32"),
    ],
)
def test_rejects_a_precision_that_breaks_a_rule(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **change)


def test_rejects_an_unknown_preset():
    with pytest.raises(ValueError, match=r"preset must be one of .*; got 'huge'"):
        preset("huge")
