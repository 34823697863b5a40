"""Shapes without values: models on the meta device."""

import pytest
import torch

from fastslots import SlotAttention, SlotInit
from tests.models.slate.small_models import images, initial_slots, small_model


@pytest.mark.parametrize("backend", ["auto", "torch", "reference"])
@pytest.mark.parametrize("gradient", ["neumann", "unrolled"])
@pytest.mark.parametrize("tolerance", [None, 0.1])
@pytest.mark.parametrize("masked", [False, True])
def test_slot_attention_gives_the_shapes_of_its_results_and_gradients(
    backend, gradient, tolerance, masked
):
    with torch.device("meta"):
        init = SlotInit(3, 8)
        module = SlotAttention(
            2, 3, 12, 8, 16, 2, gradient=gradient, tolerance=tolerance, backend=backend
        )
        mask = torch.ones(2, 7, dtype=torch.bool) if masked else None
        slots, attn = module(torch.randn(2, 7, 12), init(2), mask=mask)
    assert (slots.shape, attn.shape, slots.device.type) == ((2, 3, 8), (2, 7, 3), "meta")
    (slots.sum() + attn.sum()).backward()
    assert module.project_k.weight.grad.is_meta


@pytest.mark.parametrize("training", [True, False])
def test_slate_gives_the_shapes_of_its_results_and_gradients(training):
    model = small_model().to("meta").train(training)
    image = images(2).to("meta")
    output = model(image)
    (output.cross_entropy + output.mse).backward()
    assert all(parameter.grad.is_meta for parameter in model.parameters())
    ids = model.tokenize(image)
    slots, attn = model.encode(ids)
    assert (ids.shape, slots.shape, attn.shape) == ((2, 16), (2, 3, 16), (2, 16, 3))
    assert model.token_cross_entropy(ids, slots).shape == ()
    assert model.reconstruct(image).shape == image.shape


def test_tensors_of_another_device_are_named():
    model = small_model()
    ids = torch.zeros(2, 16, dtype=torch.int64)
    keys = torch.zeros(2, 2, dtype=torch.int32)
    slots = initial_slots(2, dtype=torch.float32)
    for name, call in {
        "image": lambda: model(images(2).to("meta")),
        "ids": lambda: model.encode(ids.to("meta")),
        "slots": lambda: model.encode(ids, slots.to("meta")),
        "keys": lambda: model.encode(ids, keys=keys.to("meta")),
    }.items():
        message = f"{name} must be on the device of the parameters, cpu; got meta"
        with pytest.raises(ValueError, match=message):
            call()
