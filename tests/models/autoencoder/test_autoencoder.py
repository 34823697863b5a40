"""The slot autoencoder: what its methods have in common, its noise, its options, that it learns."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastslots.models.autoencoder import (
    SlotAutoencoder,
    SlotAutoencoderConfig,
    TrainableSlotAutoencoder,
)
from fastslots.models.autoencoder.layers import SoftPositions, from_patches, to_patches
from fastslots.noise import sample_keys
from fastslots_kernels.api import INIT_GRADIENTS
from fastslots_kernels.testing import FLOAT64_BOUND, largest
from tests.models.autoencoder.small_autoencoders import (
    PATCHES,
    initial_slots,
    small_config,
    small_model,
    whitened_model,
)
from tests.models.slate.small_models import images

KEYS = sample_keys(range(4), 0)
BACKBONES = pytest.mark.parametrize("settings", [{}, PATCHES], ids=["pixels", "patches"])


def make(**settings: Any) -> tuple[SlotAutoencoder, Tensor]:
    return whitened_model(**settings).eval(), images(4, dtype=torch.float64)


def assert_equal(actual: Tensor, expected: Tensor) -> None:
    assert actual.shape == expected.shape
    assert largest((actual - expected).detach()) <= FLOAT64_BOUND * largest(expected.detach())


def test_patches_are_squares_in_raster_order_and_come_back() -> None:
    image = torch.arange(2 * 3 * 6 * 6).view(2, 3, 6, 6)
    patches = to_patches(image, 2)
    assert patches.shape == (2, 3, 9, 4)
    assert patches[0, 0, 1].tolist() == [2, 3, 8, 9]
    assert patches[1, 2, 8].tolist() == image[1, 2, 4:, 4:].flatten().tolist()
    assert torch.equal(from_patches(patches, 2), image)
    assert torch.equal(from_patches(to_patches(image, 6), 6), image)


def test_positions_are_distances_from_the_four_sides() -> None:
    positions = SoftPositions(3, nn.Linear(4, 4))
    with torch.no_grad():
        positions.dense.weight.copy_(torch.eye(4))
        nn.init.zeros_(positions.dense.bias)
        found = positions(torch.zeros(1, 4))
    assert found[0].tolist() == [0, 0, 1, 1]
    assert found[1].tolist() == [0, 0.5, 1, 0.5]
    assert found[5].tolist() == [0.5, 1, 0.5, 0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_positions_have_the_precision_of_the_model_whatever_the_default_dtype_was(
    default_dtype, dtype: torch.dtype
) -> None:
    expected = SoftPositions(7, nn.Linear(4, 4))
    default_dtype(dtype)
    positions = SoftPositions(7, nn.Linear(4, 4)).to(torch.float32)
    positions.load_state_dict(expected.state_dict())
    assert torch.equal(positions(torch.zeros(1, 4).float()), expected(torch.zeros(1, 4).float()))


def test_a_model_made_on_the_meta_device_is_whole_once_it_has_weights() -> None:
    expected = small_model(**PATCHES)
    with torch.device("meta"):
        model = SlotAutoencoder(expected.config)
    model.to_empty(device="cpu").load_state_dict(expected.state_dict())
    actual, wanted = (each(images(4), KEYS) for each in (model, expected))
    assert all(map(torch.equal, actual, wanted))


@BACKBONES
def test_the_output_has_its_shapes_and_is_consistent(settings: dict[str, Any]) -> None:
    model, image = make(**settings)
    out, side = model(image, KEYS), model.config.grid_size
    shapes = {name: tuple(value.shape) for name, value in out._asdict().items()}
    assert shapes == {
        "loss": (),
        "recon": (4, 3, 16, 16),
        "masks": (4, 3, 16, 16),
        "attn": (4, side**2, 3),
        "slots": (4, 3, 6),
    }
    assert out.recon.min() >= 0
    assert out.recon.max() <= 1
    for shares, dim in ((out.masks, 1), (out.attn, 2)):
        assert shares.min() >= 0
        assert_equal(shares.sum(dim), torch.ones_like(shares.sum(dim)))
    colours = model.whitening(image)
    slot_images, masks = model.decode(out.slots)
    mixed = (masks.unsqueeze(2) * slot_images).sum(1)
    assert_equal((model.whitening(mixed) - colours).square().mean(), out.loss)
    assert_equal(mixed.clamp(0, 1), out.recon)


@BACKBONES
def test_every_method_shows_the_same_of_an_image(settings: dict[str, Any]) -> None:
    model, image = make(**settings)
    with torch.no_grad():
        model.decoder.out.weight.mul_(10)  # so that something is clamped
    out, seen = model(image, KEYS), model.look(image, KEYS)
    for name in ("recon", "masks", "attn", "slots"):
        assert_equal(getattr(seen, name), getattr(out, name))
    slot_images, masks = model.decode(out.slots)
    assert not torch.equal(slot_images, slot_images.clamp(0, 1))
    assert_equal(seen.slot_images, slot_images.clamp(0, 1))
    mixed = (masks.unsqueeze(2) * slot_images).sum(1)
    assert not torch.equal(mixed, mixed.clamp(0, 1))
    assert_equal(model.reconstruct(image, keys=KEYS), mixed.clamp(0, 1))
    assert torch.equal(model.segment(image, keys=KEYS), masks.argmax(1))
    loss, entropy = model.losses(image, KEYS)
    assert_equal(loss, out.loss)
    assert_equal(entropy, -(masks * masks.log()).sum(1).mean())
    guess = initial_slots(4)
    slots, _ = model.encode(image, guess)
    assert torch.equal(model.segment(image, guess), model.decode(slots)[1].argmax(1))


@BACKBONES
@pytest.mark.parametrize("num_slots", [1, 5])
def test_any_number_of_slots_may_be_given(settings: dict[str, Any], num_slots: int) -> None:
    model, image = make(**settings)
    guess = initial_slots(4, num_slots)
    slots, attn = model.encode(image, guess)
    slot_images, masks = model.decode(slots)
    assert (slots.shape, attn.shape[2]) == ((4, num_slots, 6), num_slots)
    assert slot_images.shape == (4, num_slots, 3, 16, 16)
    assert_equal(masks.sum(1), torch.ones(4, 16, 16).double())
    assert model.segment(image, guess).max() < num_slots
    assert model.reconstruct(image, guess).shape == image.shape
    # Their order changes nothing but the order of what they paint.
    permuted, _ = model.encode(image, guess.flip(1))
    assert_equal(permuted, slots.flip(1))


@BACKBONES
def test_an_image_is_the_same_alone_and_in_a_batch(settings: dict[str, Any]) -> None:
    model, image = make(**settings)
    together = model(image, KEYS)
    alone = [model(image[i : i + 1], KEYS[i : i + 1]) for i in range(4)]
    for name in ("recon", "masks", "attn", "slots"):
        assert_equal(torch.cat([getattr(out, name) for out in alone]), getattr(together, name))
    assert_equal(torch.stack([out.loss for out in alone]).mean(), together.loss)


def test_the_initial_slots_follow_from_the_keys_alone() -> None:
    model, image = make()
    first, mode = model(image, KEYS).slots, model.train()(image, KEYS).slots
    assert torch.equal(first, mode)
    assert not torch.equal(model(image, sample_keys(range(4), 1)).slots, first)
    torch.manual_seed(3)
    drawn = model(image).slots
    assert not torch.equal(drawn, model(image).slots)
    torch.manual_seed(3)
    assert torch.equal(drawn, model(image).slots)


@BACKBONES
def test_the_residual_is_how_far_one_step_moves_the_slots(settings: dict[str, Any]) -> None:
    image, slots = images(4, dtype=torch.float64), initial_slots(4)
    after, _ = make(**settings, num_iterations=1)[0].encode(image, slots)
    expected = (after - slots).flatten(1).norm(dim=1) / after.flatten(1).norm(dim=1)
    for gradient in ("unrolled", "neumann"):
        model, _ = make(**settings, gradient=gradient)
        assert_equal(model.residual(image, slots), expected.detach())


@BACKBONES
@pytest.mark.parametrize("slot_init", ["gaussian", "learned"])
@pytest.mark.parametrize("init_gradient", INIT_GRADIENTS)
@pytest.mark.parametrize("gradient", ["unrolled", "neumann"])
def test_every_parameter_that_asks_for_a_gradient_gets_one(
    settings: dict[str, Any], gradient: str, init_gradient: str, slot_init: str
) -> None:
    options = {"gradient": gradient, "init_gradient": init_gradient, "slot_init": slot_init}
    model = small_model(**settings, **options)
    sum(model.losses(images(4), KEYS)).backward()
    learns = gradient == "unrolled" or init_gradient == "straight-through"
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad is (learns or "slot_init" not in name), name
        assert (parameter.grad is not None) is parameter.requires_grad, name
        # A softmax over slots takes no notice of what all slots have in common.
        if parameter.requires_grad:
            assert parameter.grad.isfinite().all(), name
            assert parameter.grad.any(), name
    (group,) = TrainableSlotAutoencoder(model).groups().values()
    assert {id(p) for p in group} == {id(p) for p in model.parameters() if p.requires_grad}


@pytest.mark.parametrize("heads", [2, 3])
def test_slot_attention_may_have_several_heads(heads: int) -> None:
    model, image = make(num_slot_heads=heads, neumann_terms=3, gradient="neumann")
    assert not torch.equal(model(image, KEYS).slots, make(gradient="neumann")[0](image, KEYS).slots)
    assert model(image, KEYS).loss.isfinite()


@pytest.mark.parametrize("size", [8, 16])
def test_a_patch_may_be_the_whole_image(size: int) -> None:
    model = small_model(backbone="patches", patch_size=size, image_size=size)
    out = model(images(4, size), KEYS)
    assert out.attn.shape == (4, 1, 3)
    assert all(value.isfinite().all() for value in out)


def test_an_empty_batch_has_no_loss_and_empty_slots() -> None:
    for settings in ({}, PATCHES):
        model, _ = make(**settings)
        empty, none = torch.zeros(0, 3, 16, 16).double(), KEYS[:0]
        assert model.encode(empty)[0].shape == (0, 3, 6)
        assert model.segment(empty, keys=none).shape == (0, 16, 16)
        assert model.reconstruct(empty, keys=none).shape == (0, 3, 16, 16)
        assert model.look(empty, none).slot_images.shape == (0, 3, 3, 16, 16)
        assert model.residual(empty, torch.zeros(0, 3, 6).double()).shape == (0,)
        with pytest.raises(ValueError, match=r"image must hold at least one image, .*; got 0"):
            model(empty)


def test_the_model_is_that_of_its_settings() -> None:
    config = SlotAutoencoderConfig()
    assert (config.image_size, config.num_slots, config.slot_size, config.width) == (128, 7, 64, 64)
    assert (config.num_iterations, config.mlp_hidden_size) == (3, 128)
    assert (config.image_shape, config.grid_size, config.painted_size) == ((3, 128, 128), 128, 128)
    patches = small_config(**PATCHES)
    assert (patches.grid_size, patches.painted_size) == (4, 4)
    model = SlotAutoencoder(config)
    assert len(model.encoder.convs) == 4
    assert len(model.decoder.convs) == 5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "gradient"),
    [({}, "unrolled"), (PATCHES, "neumann")],
    ids=["pixels-unrolled", "patches-neumann"],
)
def test_the_compiled_model_gives_the_same_in_one_graph(
    settings: dict[str, Any], gradient: str
) -> None:
    model, image = make(**settings, gradient=gradient)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    found = []
    for call in (compiled, model):
        out = call(image, KEYS)
        gradients = torch.autograd.grad(
            out.loss, [p for p in model.parameters() if p.requires_grad]
        )
        found.append((out, gradients))
    (actual, grads), (expected, expected_grads) = found
    for one, other in zip(actual, expected, strict=True):
        assert_equal(one, other)
    scale = largest(*expected_grads)
    for one, other in zip(grads, expected_grads, strict=True):
        assert largest(one - other) <= FLOAT64_BOUND * scale
    torch._dynamo.reset()


def two_colours(count: int, size: int = 16) -> Tensor:
    """A square of one colour somewhere on a ground of another."""
    generator = torch.Generator().manual_seed(0)
    pictures = torch.empty(count, 3, size, size)
    for picture in pictures:
        ground, colour = torch.rand(2, 3, 1, 1, generator=generator)
        row, column = torch.randint(0, size // 2, (2,), generator=generator).tolist()
        picture[:] = ground
        picture[:, row : row + size // 2, column : column + size // 2] = colour
    return pictures


@pytest.mark.slow
@pytest.mark.parametrize("gradient", ["unrolled", "neumann"])
@BACKBONES
def test_two_hundred_steps_on_a_few_images_more_than_halve_the_loss(
    settings: dict[str, Any], gradient: str
) -> None:
    torch.manual_seed(0)
    model = SlotAutoencoder(small_config(**settings, gradient=gradient, width=16, slot_size=16))
    pictures, losses = two_colours(4), []
    adam = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 3e-3)
    for step in range(200):
        loss, _ = model.losses(pictures, sample_keys(range(4), 0, step))
        losses.append(loss.item())
        adam.zero_grad()
        loss.backward()
        adam.step()
    assert max(losses[-5:]) < 0.5 * losses[0]
