"""State dicts of the public SLATE code."""

import warnings

import pytest
import torch

from fastslots.models.slate import SLATE
from fastslots.models.slate.reference import PublicSLATE
from tests.models.slate.small_models import (
    NOT_IN_SHAPES,
    images,
    initial_slots,
    keywords,
    official_pair,
    relative_error,
    small_config,
)


def official(**changes):
    """A state dict of the public form and the keywords that go with it."""
    config = small_config(**changes)
    torch.manual_seed(0)
    return PublicSLATE(config).state_dict(), keywords(config)


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_the_loaded_model_equals_the_public_form(heads):
    public, model = official_pair(num_slot_heads=heads)
    public.eval()
    model.eval()
    image, guess = images(dtype=torch.float64), initial_slots()
    tokens, ids = public.tokenize(image), model.tokenize(image)
    assert torch.equal(tokens.argmax(-1), ids)
    for actual, expected in zip(
        model.encode(ids, guess), public.encode(tokens, guess), strict=True
    ):
        assert relative_error(actual, expected) <= 1e-9
    embeddings = public.positional_encoder.pe + torch.cat(
        [
            public.dictionary.dictionary.weight[:1].expand(5, 1, -1),
            public.dictionary.dictionary(ids + 1),
        ],
        dim=1,
    )
    log_probs = public.predict(embeddings[:, :-1], guess).log_softmax(-1)
    expected = -(tokens * log_probs).sum((1, 2)).mean()
    assert relative_error(model.token_cross_entropy(ids, guess), expected) <= 1e-9


def test_reads_sizes_from_the_shapes_and_accepts_a_training_checkpoint():
    state, given = official(image_size=24, image_channels=1, vocab_size=30, num_decoder_blocks=2)
    model = SLATE.from_official({"epoch": 3, "model": state, "best_val_loss": 1.0}, **given)
    assert model.config == small_config(
        image_size=24, image_channels=1, vocab_size=30, num_decoder_blocks=2
    )
    assert torch.equal(model.slot_attn.slot_init.slot_mu, state["slot_attn.slot_mu"])
    model.load_state_dict(model.state_dict(), strict=True)
    assert not any("mask" in name for name in model.state_dict())


def test_does_not_share_memory_with_the_state_dict():
    state, given = official()
    model = SLATE.from_official(state, **given)
    with torch.no_grad():
        model.out.weight.zero_()
    assert state["out.weight"].abs().max() > 0


@pytest.mark.parametrize("name", NOT_IN_SHAPES)
def test_warns_of_a_setting_that_shapes_do_not_tell(name):
    state, given = official(d_model=24, num_slot_heads=2)
    del given[name]
    with pytest.warns(UserWarning, match=f"does not tell {name}: assuming {name}="):
        model = SLATE.from_official(state, **given)
    default = SLATE.from_official(state, **given | {name: getattr(type(model.config), name)})
    assert model.config == default.config


def test_says_nothing_when_all_is_given():
    state, given = official()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = SLATE.from_official(state, **given, d_model=24, epsilon=1e-6)
    assert model.config.epsilon == 1e-6


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"d_model": 32}, "d_model=32 contradicts the state dict, whose shapes say 24"),
        ({"vocab_size": 41}, "vocab_size=41 contradicts the state dict, whose shapes say 40"),
        ({"image_size": 64}, "image_size=64 contradicts the state dict, whose shapes say 16"),
        ({"num_decoder_blocks": 4}, "num_decoder_blocks=4 contradicts .* say 3"),
        ({"slot_size": 24}, "slot_size=24 contradicts .* say 16"),
        ({"mlp_hidden_size": 24}, "mlp_hidden_size=24 contradicts .* say 20"),
        ({"image_channels": 1}, "image_channels=1 contradicts .* say 3"),
        ({"slot_init": "learned"}, "slot_init='learned' contradicts .* say 'gaussian'"),
        ({"num_blocks": 3}, r"unknown settings of SLATEConfig: \['num_blocks'\]"),
        ({"whiten": True}, "whiten must be False: public weights are of images as .*; got True"),
        ({"num_decoder_heads": 7}, "d_model must be a multiple of num_decoder_heads 7; got 24"),
    ],
)
def test_refuses_a_setting_that_contradicts(setting, message):
    state, given = official()
    with pytest.raises(ValueError, match=message):
        SLATE.from_official(state, **given | setting)


ENTRIES = sorted(official()[0])


@pytest.mark.parametrize("name", [name for name in ENTRIES if not name.endswith("_mask")])
def test_names_a_missing_entry(name):
    state, given = official()
    del state[name]
    with pytest.raises(ValueError, match=rf"misses .*\b{name}\b"):
        SLATE.from_official(state, **given)


@pytest.mark.parametrize("name", ENTRIES)
def test_names_a_misshaped_entry(name):
    state, given = official()
    state[name] = torch.zeros(2, 5)
    with pytest.raises(ValueError, match=rf"\b{name}\b"):
        SLATE.from_official(state, **given)


def test_names_an_unexpected_entry():
    state, given = official()
    state["slot_attn.pos_emb.weight"] = torch.zeros(3)
    with pytest.raises(ValueError, match=r"holds the unexpected slot_attn.pos_emb.weight"):
        SLATE.from_official(state, **given)


def test_names_the_missing_decoder():
    state, given = official()
    state = {name: tensor for name, tensor in state.items() if "blocks" not in name}
    with pytest.raises(ValueError, match=r"misses tf_dec.blocks.0"):
        SLATE.from_official(state, **given)


def test_refuses_positions_of_no_square_image():
    state, given = official()
    state["positional_encoder.pe"] = torch.zeros(1, 16, 24)
    with pytest.raises(ValueError, match=r"positional_encoder.pe must hold one more .*; got 16"):
        SLATE.from_official(state, **given)


@pytest.mark.parametrize("state", [[1, 2], {"model": 3}, {"out.weight": [1.0]}])
def test_refuses_what_maps_no_names_to_tensors(state):
    with pytest.raises(TypeError, match="state_dict must map names to tensors"):
        SLATE.from_official(state)
