"""Models that are read with other settings than they were saved with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fastslots.models.pretrained import PretrainedModel
from fastslots.models.registry import load_model
from tests.test_evaluation_of_autoencoders import make_model as autoencoder
from tests.training.tiny import tiny_model as slate

KINDS = pytest.mark.parametrize("make", [slate, autoencoder])


@KINDS
def test_drawn_slots_may_be_any_number(make: Any, tmp_path: Path) -> None:
    saved: PretrainedModel = make()
    saved.save_pretrained(tmp_path)
    model = load_model(tmp_path, num_slots=5, num_iterations=4)
    assert type(model) is type(saved)
    assert (model.config.num_slots, model.config.num_iterations) == (5, 4)
    assert all(map(torch.equal, model.state_dict().values(), saved.state_dict().values()))


@KINDS
def test_learned_queries_are_of_one_number(make: Any, tmp_path: Path) -> None:
    saved: PretrainedModel = make(slot_init="learned", init_gradient="straight-through")
    saved.save_pretrained(tmp_path)
    message = (
        r"^num_slots must be 3, the number of learned queries; got 5: leave it out, or train a"
    )
    with pytest.raises(ValueError, match=message):
        load_model(tmp_path, num_slots=5)
    assert load_model(tmp_path, num_slots=3, num_iterations=7).config.num_iterations == 7
