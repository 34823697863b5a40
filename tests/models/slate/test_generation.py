"""Cached generation against generation that runs the whole prefix again."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fastslots.noise import Noise, sample_keys
from tests.models.slate.small_models import images, initial_slots, official_pair, small_model
from tests.models.slate.uncached_generation import generate_uncached


@pytest.mark.parametrize("num_slots", [1, 3, 7])
@pytest.mark.parametrize("blocks", [1, 3])
def test_generates_the_tokens_of_the_uncached_form(blocks, num_slots):
    model = small_model(num_decoder_blocks=blocks).double().eval()
    slots = initial_slots(num_slots=num_slots)
    ids = model.generate(slots)
    assert torch.equal(ids, generate_uncached(model, slots))
    assert ids.unique().numel() > 4


def test_generates_and_reconstructs_as_the_public_form():
    public, model = official_pair(num_slot_heads=2)
    public.eval()
    image, guess = images(dtype=torch.float64), initial_slots()
    expected = public.generate(guess, 16).argmax(-1)
    assert torch.equal(model.generate(guess), expected)
    torch.testing.assert_close(
        model.reconstruct(image, guess), public.reconstruct(image, guess), rtol=0, atol=1e-9
    )
    keys = sample_keys(range(5), 0)
    drawn = model.slot_attn.slot_init(5, noise=Noise(keys))
    torch.testing.assert_close(
        model.reconstruct(image, keys=keys), public.reconstruct(image, drawn), rtol=0, atol=1e-9
    )


def test_every_token_is_the_likeliest_given_those_before_it():
    model = small_model().double().eval()
    slots = initial_slots()
    ids = model.generate(slots)
    embeddings = model.positional_encoder(model.dictionary(ids))[:, :-1]
    logits = model.out(model.tf_dec(embeddings, model.slot_proj(slots)))
    assert torch.equal(logits.argmax(-1), ids)


def test_slots_of_one_image_do_not_reach_another():
    model = small_model().double()
    slots = initial_slots()
    ids = model.generate(slots)
    alone = torch.cat([model.generate(slots[i : i + 1]) for i in range(len(slots))])
    assert torch.equal(ids, alone)
    assert len(ids.unique(dim=0)) > 1


def test_training_mode_neither_drops_out_nor_changes():
    model = small_model(dropout=0.5)
    image, slots = images(), initial_slots(dtype=torch.float32)
    assert torch.equal(model.generate(slots), model.generate(slots))
    assert torch.equal(model.reconstruct(image, slots), model.reconstruct(image, slots))
    assert model.training
    assert all(module.training for module in model.modules())


def test_needs_no_gradient_and_keeps_none():
    model = small_model()
    slots = initial_slots(dtype=torch.float32).requires_grad_()
    assert model.generate(slots).dtype == torch.int64
    assert not model.reconstruct(images()).requires_grad


def test_reconstructions_are_images():
    model = small_model()
    with torch.no_grad():
        model.dvae.decoder[-1].weight.mul_(10)
    recon = model.reconstruct(images())
    assert recon.shape == (5, 3, 16, 16)
    assert recon.min() == 0
    assert recon.max() == 1


def test_an_empty_batch_generates_no_tokens():
    assert small_model().generate(torch.zeros(0, 3, 16)).shape == (0, 16)


def test_generates_under_autocast():
    model = small_model()
    with torch.autocast("cpu", torch.bfloat16):
        ids = model.generate(initial_slots(dtype=torch.float32))
    assert ids.min() >= 0
    assert ids.max() < 40


class LargestWork(TorchDispatchMode):
    """Records the largest matrix product and what is concatenated."""

    def __init__(self):
        super().__init__()
        self.largest_product = 0
        self.concatenations = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        if func._schema.name in ("aten::mm", "aten::addmm"):
            self.largest_product = max(self.largest_product, output.numel())
        self.concatenations += func._schema.name == "aten::cat"
        return output


def test_a_step_computes_one_position_and_concatenates_nothing():
    model = small_model()
    slots = initial_slots(dtype=torch.float32)
    with LargestWork() as work:
        model.generate(slots)
    assert work.largest_product == 5 * 4 * 24  # the feed-forward net at one position of 5 images
    assert work.concatenations == len(model.tf_dec.blocks)  # of the projections, once per call
