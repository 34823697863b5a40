"""The dVAE: shapes, tokens, images."""

import torch
import torch.nn.functional as F

from fastslots.models.slate.dvae import DVAE
from tests.models.slate.small_models import images, perturbed


def make_dvae(vocab_size: int = 40) -> DVAE:
    torch.manual_seed(0)
    return perturbed(DVAE(vocab_size, image_channels=3)).double()


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
