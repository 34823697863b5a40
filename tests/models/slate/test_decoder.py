"""The transformer decoder: causality, dropout, positions."""

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
    decoder, positions = make_decoder(dropout=0.5), PositionalEncoding(9, 24, dropout=0.5).double()

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


def test_the_dictionary_begins_every_sequence_with_row_0():
    dictionary = TokenDictionary(5, 24)
    embeddings = dictionary(torch.tensor([[0, 4]]))
    assert torch.equal(embeddings, dictionary.dictionary.weight[[0, 1, 5]].unsqueeze(0))
