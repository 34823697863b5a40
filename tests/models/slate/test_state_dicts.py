"""State dicts as others wrap them, and of several dtypes: into models, or refused."""

import warnings
from copy import deepcopy
from functools import cache

import pytest
import safetensors.torch
import torch
from torch import nn

from fastslots.models.slate import SLATE
from fastslots.models.slate.reference import PublicSLATE
from tests.models.slate.small_models import keywords, small_config, small_model


@cache
def public():
    torch.manual_seed(0)
    return PublicSLATE(small_config())


def load(state):
    return SLATE.from_official(state, **keywords(small_config()))


def load_saved(folder, state):
    """What `from_pretrained` makes of somebody's state dict beside our configuration."""
    small_model().save_pretrained(folder)
    safetensors.torch.save_file(state, folder / "model.safetensors")
    return SLATE.from_pretrained(folder)


def assert_same(model, state):
    own = model.state_dict()
    for name in ("out.weight", "tf_dec.blocks.0.ffn.0.weight", "dvae.encoder.0.m.weight"):
        assert torch.equal(own[name], state[name]), name


def averaged(model):
    return torch.optim.swa_utils.AveragedModel(model)


def held_as(name):
    return lambda model: nn.ModuleDict({name: model, "metric": nn.Linear(2, 2)})


def compiled_part(model):
    model = deepcopy(model)
    model.tf_dec = torch.compile(model.tf_dec)
    return model


WRAPPERS = {
    "compiled": torch.compile,
    "part-compiled": compiled_part,
    "averaged": averaged,  # as DDP does, prefixes "module."; and counts its updates
    "lightning": held_as("slate"),
    "several": lambda model: held_as("model")(averaged(torch.compile(model))),
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_prefixes_of_wrappers_are_taken_off(wrap, tmp_path):
    state = wrap(public()).state_dict()
    assert "out.weight" not in state or any("_orig_mod" in name for name in state)
    assert_same(load(state), public().state_dict())
    own = small_model()
    assert_same(load_saved(tmp_path, wrap(own).state_dict()), own.state_dict())


@pytest.mark.parametrize("container", ["model", "state_dict", "model_state_dict"])
def test_a_state_dict_is_found_in_a_checkpoint(container):
    checkpoint = {"epoch": 3, container: public().state_dict(), "optimizer": {"state": {}}}
    assert_same(load(checkpoint), public().state_dict())


def test_several_state_dicts_are_refused():
    state = public().state_dict()
    with pytest.raises(
        ValueError, match=r"one state dict; got 2, as 'model' or 'state_dict': pass"
    ):
        load({"model": state, "state_dict": state})


def test_several_models_in_a_state_dict_are_refused():
    both = nn.ModuleDict({"slate": public(), "ema": public()})
    with pytest.raises(ValueError, match=r"one model; got 2, under 'slate.' or 'ema.': pass"):
        load(both.state_dict())


@pytest.mark.parametrize(
    ("state", "got"),
    [
        ([1], "list"),
        (nn.Linear(1, 1), "Linear"),
        ({"net": {}}, "'net': dict"),
        ({0: torch.ones(1)}, "0: Tensor"),
    ],
)
def test_what_maps_no_names_to_tensors_is_named(state, got):
    with pytest.raises(TypeError, match=rf"'model', 'state_dict' or 'model_state_dict'; got {got}"):
        load(state)


def test_weights_of_something_else_are_named_with_their_file_and_what_to_do(tmp_path):
    message = (
        r"model.safetensors misses (\S+, ){4}\S+ and \d+ more; holds the unexpected 0.bias, 0.weight: "
        r"config.json and model.safetensors must be of one model, .* load with SLATE.from_official$"
    )
    with pytest.raises(ValueError, match=message) as caught:
        load_saved(tmp_path, nn.Sequential(nn.Linear(2, 2)).state_dict())
    assert str(tmp_path) in str(caught.value)
    assert len(str(caught.value)) < 800


def test_a_state_dict_of_something_else_is_named_with_what_to_do():
    message = "misses .*, and holds 0.weight, 0.bias: .*public SLATE code.*SLATE.from_pretrained$"
    with pytest.raises(ValueError, match=message):
        load(nn.Sequential(nn.Linear(2, 2)).state_dict())


def mixed(state, **dtypes):
    """Entries whose names hold a word, in another dtype."""
    return {
        name: tensor.to(next((d for word, d in dtypes.items() if word in name), torch.bfloat16))
        for name, tensor in state.items()
        if not name.endswith("mask")
    }


@pytest.mark.parametrize(
    ("norms", "widest"),
    [
        (torch.float32, torch.float32),
        (torch.float16, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_mixed_dtypes_become_the_one_that_holds_all_exactly_and_that_is_said(norms, widest):
    state = mixed(public().state_dict(), norm=norms)
    with pytest.warns(
        UserWarning, match=rf"mixes dtypes \(.*bfloat16.*{norms}.*all became {widest}"
    ):
        model = load(state)
    assert {parameter.dtype for parameter in model.parameters()} == {widest}
    for name in ("out.weight", "tf_dec.layer_norm.weight"):
        assert torch.equal(model.state_dict()[name], state[name].to(widest))


def test_one_dtype_is_kept_and_nothing_said(tmp_path):
    state = mixed(small_model().state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_saved(tmp_path, state).out.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8, torch.complex64], ids=str)
@pytest.mark.parametrize(
    "name", ["dvae.encoder.0.m.weight", "out.weight"]
)  # the first one, a later one
def test_a_dtype_that_no_model_runs_in_is_refused(dtype, name):
    state = public().state_dict()
    state[name] = torch.zeros(state[name].shape, dtype=dtype)
    with pytest.raises(
        ValueError, match=rf"in place of torch.float16, .* the dtypes {dtype} of {name}"
    ):
        load(state)


def test_tensors_without_values_are_refused():
    with pytest.raises(ValueError, match=r"holds no values, but the meta device, for (\S+, ){4}"):
        load(deepcopy(public()).to("meta").state_dict())
