"""Layers that users change: adapters, activations, hooks, parametrizations. None is passed over."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune as pruning

from fastslots import SLATE, SlotAttention, resolve_backend
from fastslots.evaluation import evaluate
from fastslots.noise import sample_keys
from fastslots_kernels import SlotAttentionWeights, slot_attention
from tests.models.slate.small_models import images, initial_slots, small_model


class Adapter(nn.Module):
    """A low-rank adapter around a layer, as PEFT makes it."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        size_out, size_in = base.weight.shape
        dtype = base.weight.dtype
        self.down = nn.Parameter(0.5 * torch.randn(2, size_in, dtype=dtype))
        self.up = nn.Parameter(0.5 * torch.randn(size_out, 2, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.down.T @ self.up.T


class Masked(nn.Linear):
    """A Linear whose weight is a property."""

    @property
    def weight(self) -> Any:
        return 3 * self._parameters["weight"]


class Called(nn.Linear):
    """A Linear with another call."""

    def __call__(self, x: Tensor) -> Tensor:
        return 2 * super().__call__(x)


class Scaled(nn.Linear):
    """A Linear with another forward."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def adapt(module: nn.Module, name: str) -> None:
    parent = module.get_submodule(name.rpartition(".")[0])
    setattr(parent, name.rpartition(".")[2], Adapter(module.get_submodule(name)))


def scale(module: SlotAttention) -> None:
    scaled = Scaled(4, 4, bias=False).double()
    scaled.load_state_dict(module.project_q.state_dict())
    module.project_q = scaled


def patch(module: SlotAttention) -> None:
    gru = module.gru
    vars(gru)["forward"] = lambda x, h: nn.GRUCell.forward(gru, 2 * x, h)


def hook(module: SlotAttention) -> None:
    module.norm_slots.register_forward_hook(lambda _, __, output: 2 * output)


def pre_hook(module: SlotAttention) -> None:
    module.norm_mlp.register_forward_pre_hook(lambda _, inputs: (inputs[0] * torch.arange(1, 5),))


def old_spectral_norm(module: SlotAttention) -> None:
    nn.utils.spectral_norm(module.project_v)
    module.eval()  # in training each call changes its estimate


def prune(module: SlotAttention) -> None:
    pruning.l1_unstructured(module.mlp[0], "weight", amount=0.5)
    with torch.no_grad():
        module.mlp[0].weight_orig.add_(
            1.0
        )  # as an optimiser would: the mask acts when it is called


def gelu(module: SlotAttention) -> None:
    module.mlp[1] = nn.GELU()


def called(module: SlotAttention) -> None:
    layer = Called(4, 4, bias=False).double()
    layer.load_state_dict(module.project_q.state_dict())
    module.project_q = layer


def longer(module: SlotAttention) -> None:
    module.mlp.append(nn.Tanh())


def biased(module: SlotAttention) -> None:
    module.project_k = nn.Linear(6, 4).double()


CHANGES: dict[str, Callable[[SlotAttention], object]] = {
    "project_k is a Adapter with": lambda module: adapt(module, "project_k"),
    "mlp has a layer 2 that is a Adapter": lambda module: adapt(module, "mlp.2"),
    "project_q is a Scaled with": scale,
    "gru is a GRUCell with a forward of its own": patch,
    "norm_slots has forward hooks": hook,
    "norm_mlp has forward hooks": pre_hook,
    "project_v has forward hooks": old_spectral_norm,
    "mlp has a layer 0 that has forward hooks": prune,
    "mlp has a layer 1 that is a GELU": gelu,
    "mlp has 4 layers in place of 3": longer,
    "project_k has a bias": biased,
    "project_q is a Called with a __call__ of its own": called,
}


def make(backend: str = "auto") -> tuple[SlotAttention, Tensor, Tensor]:
    torch.manual_seed(0)
    module = SlotAttention(2, 3, 6, 4, 5, backend=backend).double()
    return module, torch.randn(2, 7, 6).double(), torch.randn(2, 3, 4).double()


def step_by_calls(module: SlotAttention, inputs: Tensor, slots: Tensor) -> Tensor:
    """Figure 2, by calls of the module's layers."""
    x = module.norm_inputs(inputs)
    k, v = module.project_k(x) / 2, module.project_v(x)
    for _ in range(3):
        q = module.project_q(module.norm_slots(slots))
        attn = torch.softmax(k @ q.mT, -1) + module.epsilon
        updates = (attn / attn.sum(1, keepdim=True)).mT @ v
        slots = module.gru(updates.flatten(0, 1), slots.flatten(0, 1)).view_as(slots)
        slots = slots + module.mlp(module.norm_mlp(slots))
    return slots


@pytest.mark.parametrize("why", CHANGES)
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_a_changed_layer_is_called(why: str, backend: str) -> None:
    module, inputs, slots = make(backend)
    before, _ = module(inputs, slots)
    CHANGES[why](module)
    after, _ = module(inputs, slots)
    torch.testing.assert_close(after, step_by_calls(module, inputs, slots))
    assert (after - before).abs().max() > 1e-3
    after.sum().backward()
    assert all(p.grad is not None for p in module.parameters())
    chosen = resolve_backend(backend, inputs, slots, module)
    assert chosen.name == "reference"
    assert why in chosen.reason


@pytest.mark.parametrize("why", CHANGES)
@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_a_backend_that_reads_refuses_a_changed_layer(why: str, backend: str) -> None:
    module, inputs, slots = make(backend)
    CHANGES[why](module)
    with pytest.raises(RuntimeError, match=f"backend '{backend}' reads .* its {why}.*'reference'"):
        module(inputs, slots)
    with pytest.raises(ValueError, match=f"a SlotAttention whose {why}.* pass the module itself"):
        SlotAttentionWeights.from_module(module)


@pytest.mark.parametrize(
    "register", ["register_full_backward_hook", "register_full_backward_pre_hook"]
)
def test_backward_hooks_run(register: str) -> None:
    module, inputs, slots = make()
    seen = []
    getattr(module.project_k, register)(lambda *_: seen.append(1))
    module(inputs, slots)[0].sum().backward()
    assert seen


def test_that_layers_are_called_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    module, inputs, slots = make()
    module.mlp[1] = nn.SiLU()
    with caplog.at_level(logging.WARNING, "fastslots_kernels"):
        for _ in range(2):
            module(inputs, slots)
    assert [record.message for record in caplog.records] == [
        "slot attention calls the layers of its module, without fused kernels: its mlp has a layer 1 "
        "that is a SiLU with a forward of its own"
    ]


def test_a_module_may_be_given_in_place_of_its_tensors() -> None:
    module, inputs, slots = make()
    weights = SlotAttentionWeights.from_module(module)
    results = [
        slot_attention(inputs, slots, w, num_iterations=2, backend="torch")[0]
        for w in (module, weights)
    ]
    assert torch.equal(*results)


@pytest.mark.parametrize("backend", ["triton", "torch", "reference", "auto"])
def test_a_weight_that_is_a_property_is_read_as_one(backend: str) -> None:
    module, inputs, slots = make(backend)
    before, _ = module(inputs, slots)
    module.project_k.__class__ = Masked
    after, _ = module(inputs, slots)
    torch.testing.assert_close(after, step_by_calls(module, inputs, slots))
    assert (after - before).abs().max() > 1e-3


def test_widths_are_checked_where_layers_are_called() -> None:
    module, inputs, slots = make()
    gelu(module)
    with pytest.raises(ValueError, match="inputs must have width 6, the input_size; got 5"):
        module(inputs[..., :5], slots)
    with pytest.raises(ValueError, match="slots must have width 4, the slot_size; got 3"):
        module(inputs, slots[..., :3])


PARAMETRIZATIONS: dict[str, Callable[[nn.Module], object]] = {
    "weight_norm": nn.utils.parametrizations.weight_norm,
    "spectral_norm": nn.utils.parametrizations.spectral_norm,
    "orthogonal": nn.utils.parametrizations.orthogonal,
}


@pytest.mark.parametrize("name", PARAMETRIZATIONS)
@pytest.mark.parametrize("backend", ["triton", "torch", "reference", "auto"])
def test_parametrizations_work_with_every_backend(name: str, backend: str) -> None:
    module, inputs, slots = make(backend)
    before, _ = module(inputs, slots)
    module.eval()
    PARAMETRIZATIONS[name](module.project_v)
    with torch.no_grad():
        for p in module.project_v.parameters():
            p.mul_(1.5)
    after, _ = module(inputs, slots)
    torch.testing.assert_close(after, step_by_calls(module, inputs, slots))
    assert (after - before).abs().max() > 1e-3
    after.sum().backward()
    assert all(p.grad is not None for p in module.parameters())
    expected = "torch" if backend == "auto" else backend
    assert resolve_backend(backend, inputs, slots, module).name == expected


@pytest.mark.slow
@pytest.mark.parametrize("changed", [False, True])
def test_compiles_as_one_graph(changed: bool) -> None:
    module, inputs, slots = make()
    if changed:
        adapt(module, "project_k")
        module.norm_slots.register_forward_hook(lambda _, __, output: 2 * output)
    expected, _ = module(inputs, slots)
    compiled = torch.compile(copy.deepcopy(module), fullgraph=True, backend="aot_eager")
    actual, _ = compiled(inputs, slots)
    actual.sum().backward()
    torch.testing.assert_close(actual, expected)


# SLATE


LAYERS = [
    "slot_proj",
    "out",
    "slot_attn.mlp.0",
    "slot_attn.slot_attention.project_k",
    "tf_dec.blocks.1.self_attn.proj_q",
    "tf_dec.blocks.1.self_attn.proj_v",
    "tf_dec.blocks.1.self_attn.proj_o",
    "tf_dec.blocks.1.encoder_decoder_attn.proj_q",
    "tf_dec.blocks.1.encoder_decoder_attn.proj_k",
    "tf_dec.blocks.1.encoder_decoder_attn.proj_o",
    "tf_dec.blocks.1.ffn.2",
]


def merge(model: SLATE, name: str) -> None:
    """Puts an adapter into the weight it adapts."""
    adapter = model.get_submodule(name)
    adapter.base.weight.data += adapter.up.data @ adapter.down.data
    parent = model.get_submodule(name.rpartition(".")[0])
    setattr(parent, name.rpartition(".")[2], adapter.base)


@pytest.mark.parametrize("name", LAYERS)
def test_an_adapter_of_slate_equals_its_merged_weight_in_training_and_generation(name: str) -> None:
    model = small_model(dropout=0.2, gradient="neumann").double()
    torch.manual_seed(1)
    adapt(model, name)
    merged = copy.deepcopy(model)
    merge(merged, name)
    unchanged = small_model(dropout=0.2, gradient="neumann").double()
    keys, image, slots = sample_keys(range(5), 0), images(dtype=torch.float64), initial_slots()
    losses = [m(image, keys=keys).cross_entropy for m in (model, merged, unchanged)]
    torch.testing.assert_close(losses[0], losses[1])
    assert (losses[0] - losses[2]).abs() > 1e-6
    assert torch.equal(model.generate(slots), merged.generate(slots))
    means = [evaluate(m, image).means["cross_entropy_nats_per_image"] for m in (model, merged)]
    torch.testing.assert_close(means[0].mean, means[1].mean)


def test_hooks_of_blocks_run_when_tokens_are_generated() -> None:
    model, slots = small_model().double().eval(), initial_slots()
    before = model.generate(slots)
    model.tf_dec.blocks[0].register_forward_hook(lambda _, __, output: output.flip(-1))
    assert not torch.equal(model.generate(slots), before)


def test_embeddings_of_a_largest_norm_have_it_when_tokens_are_generated() -> None:
    model, slots = small_model().double().eval(), initial_slots()
    model.dictionary.dictionary.max_norm = 0.5
    ids = model.generate(slots)
    embeddings = model.positional_encoder(model.dictionary(ids))[:, :-1]
    logits = model.out(model.tf_dec(embeddings, model.slot_proj(slots)))
    assert torch.equal(logits.argmax(-1), ids)


def test_a_hook_may_change_the_dtype_of_logits() -> None:
    model = small_model().eval().bfloat16()
    slots = initial_slots(dtype=torch.bfloat16)
    before = model.generate(slots)
    model.out.register_forward_hook(lambda _, __, output: output.float())
    assert torch.equal(model.generate(slots), before)


@pytest.mark.parametrize(
    ("name", "layer", "why"),
    [
        ("encoder.7", nn.Conv2d(64, 40, 3, padding=1), r"has kernel_size \(3, 3\) in place"),
        ("encoder.7", nn.Conv2d(64, 40, 1, bias=False), "has bias False in place of True"),
        ("decoder.0.m", nn.Conv2d(40, 64, 1), "has bias True in place of False"),
        ("decoder.11", nn.Conv2d(64, 3, 1, stride=2), r"has stride \(2, 2\) in place"),
        ("decoder.10", nn.Sequential(nn.PixelShuffle(2), nn.ReLU()), "is a Sequential with a"),
        ("decoder.12", nn.Sigmoid(), "has len 13 in place of 12"),
        ("encoder.8", nn.Dropout2d(), "has len 9 in place of 8"),
    ],
    ids=str,
)
def test_a_layer_of_the_dvae_that_is_read_may_not_be_another(
    name: str, layer: nn.Module, why: str
) -> None:
    model = small_model()
    model.dvae.get_submodule(name.rpartition(".")[0]).add_module(name.rpartition(".")[2], layer)
    for call in (model, model.tokenize):
        with pytest.raises(RuntimeError, match=rf"dvae.\w+(.\d+)?(.m)? must compute .*; it {why}"):
            call(images())


@pytest.mark.parametrize(
    "name", ["encoder.7", "decoder.0.m", "decoder.0", "decoder.11", "encoder", "decoder"]
)
def test_a_layer_of_the_dvae_that_is_read_may_not_change(name: str) -> None:
    model = small_model()
    model.dvae.get_submodule(name).register_forward_hook(lambda _, __, output: 2 * output)
    with pytest.raises(RuntimeError, match=rf"dvae.{name} must compute .*; it has forward hooks"):
        model(images())
    with pytest.raises(RuntimeError, match=rf"dvae.{name} must compute"):
        model.dvae.decode_ids(torch.zeros(1, 16, dtype=torch.int64))
