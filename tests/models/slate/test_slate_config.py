"""SLATEConfig: what it derives and what it refuses."""

from dataclasses import FrozenInstanceError

import pytest

from fastslots.models.slate import SLATE, SLATEConfig


def test_counts_one_token_per_patch():
    assert SLATEConfig(image_size=64).num_tokens == 256
    assert SLATEConfig(image_size=96).num_tokens == 576


def test_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        SLATEConfig().num_slots = 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_size": 66}, "image_size must be a multiple of the patch size 4; got 66"),
        ({"d_model": 190}, "d_model must be a multiple of num_decoder_heads 8; got 190"),
        ({"num_slot_heads": 5}, "slot_size must be a multiple of num_slot_heads 5; got 192"),
        ({"vocab_size": 0}, "vocab_size must be at least 1; got 0"),
        ({"num_slots": -1}, "num_slots must be at least 1; got -1"),
        ({"image_channels": True}, "image_channels must be an int; got True"),
        ({"num_decoder_blocks": "8"}, "num_decoder_blocks must be an int; got '8'"),
        ({"num_iterations": -1}, "num_iterations must be at least 0; got -1"),
        (
            {"num_iterations": 0, "gradient": "unrolled"},
            "num_iterations must be at least 1 with gradient='unrolled'; got 0",
        ),
        ({"dropout": 1}, "dropout must be at least 0 and below 1; got 1"),
        ({"dropout": -0.1}, "dropout must be at least 0 and finite; got -0.1"),
        ({"dropout": float("nan")}, "dropout must be at least 0 and finite; got nan"),
        ({"dropout": None}, "dropout must be a number; got None"),
        ({"epsilon": -1e-8}, "epsilon must be at least 0 and finite; got -1e-08"),
        ({"epsilon": float("inf")}, "epsilon must be at least 0 and finite; got inf"),
        ({"gradient": "broyden"}, "gradient must be one of .*; got 'broyden'"),
        ({"gradient": "adjoint"}, "gradient must be one of .*; got 'adjoint'"),
        ({"init_gradient": "always"}, "init_gradient must be one of .*; got 'always'"),
        ({"slot_init": "zeros"}, "slot_init must be one of .*; got 'zeros'"),
        (
            {"position_init": "sine"},
            r"position_init must be one of \('normal', 'smooth'\); got 'sine'",
        ),
        ({"whiten": 1}, "whiten must be True or False; got 1"),
        ({"backend": "cuda"}, "backend must be one of .*; got 'cuda'"),
    ],
)
def test_refuses_a_setting_that_breaks_its_rule(settings, message):
    with pytest.raises((TypeError, ValueError), match=message):
        SLATEConfig(**settings)


def test_model_refuses_what_is_no_config():
    with pytest.raises(TypeError, match="config must be a SLATEConfig; got dict"):
        SLATE({"num_slots": 3})
