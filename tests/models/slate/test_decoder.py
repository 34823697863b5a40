"""The transformer decoder: causality, dropout, positions."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from fastslots.models.slate.decoder import PositionalEncoding, TokenDictionary, TransformerDecoder
from fastslots.noise import Noise, sample_keys
from tests.models.slate.small_models import perturbed


def make_decoder(dropout: float = 0.0, backend: str = "auto") -> TransformerDecoder:
    torch.manual_seed(0)
    return perturbed(TransformerDecoder(3, 24, 4, dropout, backend)).double()


def make_inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 9, 24, generator=generator, dtype=torch.float64)
    context = torch.randn(2, 3, 24, generator=generator, dtype=torch.float64)
    return x, context


@pytest.mark.parametrize("position", [0, 4, 8])
def test_a_position_sees_itself_and_those_before_it(position):
    decoder, (x, context) = make_decoder(), make_inputs()
    x.requires_grad_()
    decoder(x, context)[:, position].square().sum().backward()
    seen = x.grad.abs().amax(dim=(0, 2)) > 0
    assert seen.tolist() == [index <= position for index in range(9)]


def test_ignores_the_order_of_the_slots_but_not_their_values():
    decoder, (x, context) = make_decoder(), make_inputs()
    output = decoder(x, context)
    torch.testing.assert_close(decoder(x, context.flip(1)), output)
    assert (decoder(x, 2 * context) - output).abs().max() > 1e-3


def test_the_first_block_alone_forgets_the_scale_of_its_input():
    decoder, (x, context) = make_decoder(), make_inputs()
    first, second = decoder.blocks[0], decoder.blocks[1]
    for block, forgets in ((first, True), (second, False)):
        difference = (block(1e3 * x, context) - block(x, context)).abs().max()
        assert (difference < 1e-3).item() is forgets


@pytest.mark.parametrize("part", ["decoder", "positions"])
def test_drops_out_where_noise_is_given_and_as_its_keys_say(part):
    x, context = make_inputs()
    decoder, positions = make_decoder(dropout=0.5), PositionalEncoding(3, 24, dropout=0.5).double()

    def call(noise: Noise | None) -> Tensor:
        return decoder(x, context, noise) if part == "decoder" else positions(x, noise)

    first, same, other = (Noise(sample_keys(range(2), seed)) for seed in (0, 0, 1))
    dropped = call(first)
    assert torch.equal(dropped, call(same))
    assert not torch.equal(dropped, call(other))
    assert not torch.equal(dropped, call(None))


def test_kernels_and_parts_give_the_same():
    found = []
    for backend in ("triton", "torch"):
        (x, context), noise = make_inputs(), Noise(sample_keys(range(2), 0))
        decoder = make_decoder(0.5, backend)
        output = decoder(x.requires_grad_(), context, noise)
        found.append(
            (output, *torch.autograd.grad(output.square().sum(), [x, *decoder.parameters()]))
        )
    for kernels, parts in zip(*found, strict=True):
        torch.testing.assert_close(kernels, parts, rtol=1e-9, atol=1e-9)


def test_smooth_positions_are_the_more_alike_the_nearer_and_the_others_are_not():
    torch.manual_seed(0)
    smooth, normal = (PositionalEncoding(8, 64, 0.0, init).pe[0] for init in ("smooth", "normal"))
    assert smooth.shape == normal.shape == (65, 64)
    along_a_row = [
        torch.cosine_similarity(smooth[1], smooth[1 + distance], 0).item() for distance in range(8)
    ]
    assert all(near > far for near, far in pairwise(along_a_row[:5]))
    assert along_a_row[1] > 0.85
    downwards = torch.cosine_similarity(smooth[1:57], smooth[9:], 1)
    assert downwards.min() > 0.7
    assert torch.cosine_similarity(normal[1:64], normal[2:], 1).mean().abs() < 0.1
    assert smooth[1:].mean(0).abs().max() < 1e-6
    assert smooth[1:].std().item() == pytest.approx(0.5, rel=0.2)


def test_an_image_of_one_token_has_a_smooth_position():
    assert PositionalEncoding(1, 8, 0.0, "smooth").pe.isfinite().all()


def test_the_dictionary_begins_every_sequence_with_row_0():
    dictionary = TokenDictionary(5, 24)
    embeddings = dictionary(torch.tensor([[0, 4]]))
    assert torch.equal(embeddings, dictionary.dictionary.weight[[0, 1, 5]].unsqueeze(0))
