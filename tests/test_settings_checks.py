"""The checks that every function and dataclass of settings shares."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pytest
import torch

from fastslots import SlotAttention, SlotInit
from fastslots.benchmark import Case
from fastslots.comparison import Settings
from fastslots.data.scenes import Scenes
from fastslots.data.source import DataSource
from fastslots.models.slate import SLATE, SLATEConfig, SLATERecipe
from fastslots.settings import check_fields
from fastslots_kernels.checks import check_count, check_number


@dataclass(frozen=True)
class Numbers:
    count: int = 3
    rate: float = 0.5
    limit: float = 1.0
    offset: int = 0
    fast: bool = False
    kind: str = "a"
    folder: str | None = None

    def __post_init__(self) -> None:
        check_fields(
            self, may_be_zero=("offset",), may_be_infinite=("limit",), choices={"kind": ("a", "b")}
        )


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"count": 0}, ValueError, "count must be at least 1; got 0"),
        ({"count": 2.0}, TypeError, "count must be an int; got 2.0"),
        ({"count": True}, TypeError, "count must be an int; got True"),
        ({"count": np.bool_(True)}, TypeError, "count must be an int; got "),
        ({"count": torch.tensor(3)}, TypeError, "count must be an int; got tensor"),
        ({"count": 2**63}, ValueError, r"count must be below 2\*\*63; got 9223372036854775808"),
        ({"offset": -1}, ValueError, "offset must be at least 0; got -1"),
        ({"rate": 0}, ValueError, "rate must be above 0 and finite; got 0"),
        ({"rate": 10**400}, ValueError, "rate must be above 0 and finite; got 10"),
        ({"rate": math.nan}, ValueError, "rate must be above 0 and finite; got nan"),
        ({"rate": "1"}, TypeError, "rate must be a number; got '1'"),
        ({"rate": 1j}, TypeError, "rate must be a number; got 1j"),
        ({"limit": -math.inf}, ValueError, "limit must be above 0; got -inf"),
        ({"fast": 1}, TypeError, "fast must be True or False; got 1"),
        ({"kind": "c"}, ValueError, r"kind must be one of \('a', 'b'\); got 'c'"),
        ({"kind": None}, ValueError, r"kind must be one of \('a', 'b'\); got None"),
        ({"kind": ["a"]}, ValueError, r"kind must be one of \('a', 'b'\); got \['a'\]"),
        ({"folder": 5}, TypeError, "folder must be a str or None; got 5"),
    ],
    ids=str,
)
def test_a_field_that_breaks_its_rule_is_named(
    settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=f"^{message}"):
        Numbers(**settings)


def test_numbers_of_numpy_become_pythons() -> None:
    made = Numbers(count=np.int32(4), rate=np.float32(0.25), limit=np.inf, offset=np.uint8(7))
    assert asdict(made) == asdict(Numbers(4, 0.25, math.inf, 7))
    assert [type(value) for value in asdict(made).values()][:4] == [int, float, float, int]


@pytest.mark.parametrize(
    "make",
    [
        lambda n: SLATEConfig(num_slots=n, dropout=np.float32(0.5)),
        lambda n: SLATERecipe(steps=n, clip=np.float32(0.5)),
        lambda n: Settings(num_slots=n),
        lambda n: DataSource(num_scenes=n),
    ],
    ids=["model", "recipe", "comparison", "data"],
)
def test_settings_of_numpy_numbers_can_be_written_down(make: Any) -> None:
    assert json.dumps(asdict(make(np.int64(5)))) == json.dumps(asdict(make(5)))


def test_modules_take_sizes_and_counts_of_numpy() -> None:
    three, eight = np.int64(3), np.int32(8)
    init: Any = SlotInit(three, eight)
    module: Any = SlotAttention(three, three, eight, eight, eight, np.int16(2), np.float32(1e-6))
    slots = init(np.int64(2), num_slots=np.int64(4))
    assert slots.shape == (2, 4, 8)
    for backend in ("torch", "reference", "triton"):
        module.backend, module.num_iterations = backend, three
        new, _ = module(torch.randn(2, 5, 8), slots, num_iterations=np.uint8(2))
        assert new.shape == (2, 4, 8)
        assert int(module.iterations_used) == 2
    Case("case", *[eight] * 6, iterations=(np.int64(3),))
    assert len(Scenes(three, image_size=eight)) == 3


def test_a_slate_of_numpy_numbers_saves(tmp_path: Any) -> None:
    eight = np.int64(8)
    config = SLATEConfig(
        image_size=eight, vocab_size=eight, d_model=eight, num_decoder_blocks=1,
        slot_size=eight, mlp_hidden_size=eight,
    )  # fmt: skip
    SLATE(config).save_pretrained(tmp_path)
    assert SLATE.from_pretrained(tmp_path).config == config


def test_the_rule_names_every_bound() -> None:
    with pytest.raises(ValueError, match=r"p must be at least 0 and below 1; got 1\.0"):
        check_number("p", 1.0, least=0, below=1)
    with pytest.raises(ValueError, match="n must be at least 2 here; got 1"):
        check_count("n", 1, 2, " here")
