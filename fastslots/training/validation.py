"""Losses, slots and pictures on held-out images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from fastslots.metrics import slots_used
from fastslots.models.modes import eval_mode
from fastslots.models.slate import SLATE
from fastslots.noise import sample_keys
from fastslots.pictures import save_panels

_SUMS = 5  # of the two losses, the two of `slot_sums`, and the images


@torch.no_grad()
def validate(
    model: SLATE,
    batches: Sequence[Tensor],
    tau: float,
    seed: int,
    *,
    first_image: int = 0,
    add_up: Callable[[Tensor], Tensor] | None = None,
) -> dict[str, float]:
    """Mean losses of a model in eval mode: greedy tokens, no dropout.

    An image's initial slots follow from `seed` and its number, whatever the batches and processes.

    Args:
        model: On any device, in any mode.
        batches: Images in [0, 1], ``[B, 3, S, S]`` each, on the model's device.
        tau: Temperature of the relaxed tokens.
        seed: Of the initial slots.
        first_image: Number of the first image.
        add_up: Adds a float64 tensor over the processes that have the other images. Default: there are none.

    Returns:
        Per image: ``cross_entropy`` (nats, summed over tokens), ``mse`` (of the dVAE with one-hot tokens,
        summed over values), ``loss`` (their sum), ``unigram_entropy`` (nats): what a code that knows
        only how often each token occurs would need for an image's tokens, ``relative_residual`` and
        ``slots_used`` (see `slot_sums`).
    """
    device, vocab_size = model.device, model.config.vocab_size
    total = torch.zeros(_SUMS + vocab_size, dtype=torch.float64, device=device)
    with eval_mode(model):
        for batch in batches:
            keys = validation_keys(first_image, len(batch), seed).to(device)
            out = model(batch, tau, hard=True, keys=keys)
            losses = len(batch) * torch.stack((out.cross_entropy, out.mse)).double()
            slots = slot_sums(model, out.ids, out.slots, out.attn)
            counts = torch.bincount(out.ids.flatten(), minlength=vocab_size)
            total += torch.cat((losses, slots, losses.new_tensor([len(batch)]), counts))
            first_image += len(batch)
    if add_up is not None:
        total = add_up(total)
    cross_entropy, mse, residual, used, images = total[:_SUMS].tolist()
    counts = total[_SUMS:]
    unigram = torch.special.entr(counts / counts.sum()).sum().item() * model.config.num_tokens
    return {
        "cross_entropy": cross_entropy / images,
        "mse": mse / images,
        "loss": (cross_entropy + mse) / images,
        "unigram_entropy": unigram,
        "relative_residual": residual / images,
        "slots_used": used / images,
    }


def validation_keys(first: int, count: int, seed: int) -> Tensor:
    """The keys of some held-out images, ``[count, 2]`` int32."""
    return sample_keys(range(first, first + count), seed, "validation")


@torch.no_grad()
def slot_sums(model: SLATE, ids: Tensor, slots: Tensor, attn: Tensor) -> Tensor:
    """How well the slots have converged and how many are in use, summed over images.

    Args:
        model: In eval mode.
        ids: Tokens, ``[B, N]`` int64.
        slots: The final slots s, ``[B, K, slot_size]``.
        attn: Attention of every token over the slots, ``[B, N, K]``.

    Returns:
        ``[2]`` float64: the relative residual ``‖f(s) - s‖ / ‖f(s)‖``, f being one step of slot attention,
        and the slots that attend most to at least one token.
    """
    encoder = model.slot_attn
    embeddings = model.dictionary(ids) + model.positional_encoder.pe
    inputs = encoder.mlp(encoder.layer_norm(embeddings[:, 1:]))
    # Implicit slot attention takes one step after the iterations it counts.
    iterations = 1 if encoder.slot_attention.gradient == "unrolled" else 0
    after, _ = encoder.slot_attention(inputs, slots, iterations, return_attn=False)
    change = torch.linalg.vector_norm((after - slots).flatten(1), dim=1)
    residual = change / torch.linalg.vector_norm(after.flatten(1), dim=1)
    return torch.stack((residual.double().sum(), slots_used(attn).sum()))


@torch.no_grad()
def draw_panels(model: SLATE, image: Tensor, path: Path, seed: int) -> None:
    """Writes image | dVAE | through the slots | segments | one panel per slot, a row per image.

    Args:
        model: On any device, in any mode.
        image: Images in [0, 1], ``[B, 3, S, S]``, on the model's device.
        path: PNG file to write.
        seed: Of the initial slots: those of a validation whose first images these are.
    """
    with eval_mode(model):
        ids = model.tokenize(image)
        slots, attn = model.encode(ids, keys=validation_keys(0, len(image), seed).to(image.device))
        through_slots = model.dvae.decode_ids(model.generate(slots)).clamp(0, 1)
        recon = model.dvae.decode_ids(ids).clamp(0, 1)
    save_panels(path, image.cpu(), recon.cpu(), through_slots.cpu(), attn.cpu())
