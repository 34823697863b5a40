"""The dVAE: shapes, tokens, samples."""

import torch
import torch.nn.functional as F

from fastslots.slate.dvae import DVAE, gumbel_noise, sample_tokens
from tests.slate.small_models import images, perturbed


def make_dvae(vocab_size: int = 40) -> DVAE:
    torch.manual_seed(0)
    return perturbed(DVAE(vocab_size, image_channels=3)).double()


def make_logits(vocab_size: int = 6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(4, vocab_size, 3, 3, generator=generator, dtype=torch.float64)


def test_maps_patches_to_logits_and_back_to_the_image_size():
    dvae = make_dvae()
    logits = dvae.encoder(images(2, dtype=torch.float64))
    assert logits.shape == (2, 40, 4, 4)
    assert dvae.decoder(logits.softmax(1)).shape == (2, 3, 16, 16)


def test_encoding_one_patch_does_not_change_another_before_normalisation_couples_them():
    dvae = make_dvae()
    image = images(1, dtype=torch.float64)
    changed = image.clone()
    changed[:, :, :4, :4] = 0
    first = dvae.encoder[0].m
    difference = (first(image) - first(changed)).abs().amax(dim=(0, 1))
    assert difference[0, 0] > 0
    assert difference.count_nonzero() == 1


def test_decoding_ids_equals_decoding_their_one_hot_form():
    dvae = make_dvae()
    ids = torch.randint(40, (3, 16), generator=torch.Generator().manual_seed(0))
    one_hot = F.one_hot(ids, 40).double().transpose(1, 2).reshape(3, 40, 4, 4)
    torch.testing.assert_close(dvae.decode_ids(ids), dvae.decoder(one_hot), rtol=1e-12, atol=1e-12)


def test_without_noise_tokens_are_greedy_and_weights_are_the_tempered_softmax():
    logits = make_logits()
    z, ids = sample_tokens(logits, tau=0.5, hard=False, noisy=False)
    torch.testing.assert_close(z, (logits / 0.5).softmax(1), rtol=0, atol=0)
    assert torch.equal(ids, logits.argmax(1).flatten(1))


def test_tokens_are_drawn_with_the_probabilities_of_the_logits():
    torch.manual_seed(0)
    logits = torch.tensor([2.0, 0.0, 1.0, -1.0]).view(1, 4, 1, 1).expand(1, 4, 200, 200)
    _, ids = sample_tokens(logits, tau=1.0, hard=False, noisy=True)
    frequencies = torch.bincount(ids.flatten(), minlength=4) / ids.numel()
    # four standard deviations of a frequency over 40,000 draws are at most 0.01
    torch.testing.assert_close(frequencies, logits[0, :, 0, 0].softmax(0), rtol=0, atol=0.01)


def test_tokens_and_weights_are_independent_draws():
    torch.manual_seed(0)
    z, ids = sample_tokens(torch.zeros(1, 8, 100, 100), tau=1.0, hard=False, noisy=True)
    agreement = (z.argmax(1).flatten(1) == ids).double().mean().item()
    assert abs(agreement - 1 / 8) < 0.014  # four standard deviations over 10,000 draws


def test_hard_weights_are_one_hot_with_the_gradient_of_the_soft_ones():
    gradients = {}
    for hard in (False, True):
        logits = make_logits().requires_grad_()
        torch.manual_seed(3)
        z, _ = sample_tokens(logits, tau=0.7, hard=hard, noisy=True)
        (z * torch.arange(6.0).view(6, 1, 1)).sum().backward()
        gradients[hard] = logits.grad
    assert torch.allclose(z.amax(1), torch.ones(()).double())
    assert torch.allclose(z.sum(1), torch.ones(()).double())
    torch.testing.assert_close(gradients[True], gradients[False])
    assert gradients[True].abs().max() > 0


def test_tokens_pass_no_gradient():
    _, ids = sample_tokens(make_logits().requires_grad_(), tau=1.0, hard=False, noisy=True)
    assert not ids.requires_grad
    assert ids.dtype == torch.int64


def test_noise_has_the_moments_of_a_gumbel_variable_and_full_precision():
    torch.manual_seed(0)
    noise = gumbel_noise(torch.zeros(100_000, dtype=torch.bfloat16))
    assert noise.dtype == torch.float32
    assert abs(noise.mean().item() - 0.5772) < 0.02
    assert abs(noise.var().item() - torch.pi**2 / 6) < 0.05
