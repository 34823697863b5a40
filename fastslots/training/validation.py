"""Losses and pictures on held-out images."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from fastslots.pictures import save_panels
from fastslots.slate import SLATE


@torch.no_grad()
def validate(model: SLATE, batches: list[Tensor], tau: float, seed: int) -> dict[str, float]:
    """Mean losses of a model in eval mode: greedy tokens, no dropout, slots drawn from `seed`.

    Args:
        model: On any device, in any mode.
        batches: Images in [0, 1], ``[B, 3, S, S]`` each, on the model's device.
        tau: Temperature of the relaxed tokens.
        seed: Of the initial slots.

    Returns:
        Per image: ``cross_entropy`` (nats, summed over tokens), ``mse`` (of the dVAE with one-hot tokens,
        summed over values), ``loss`` (their sum), and ``unigram_entropy`` (nats): what a code that knows
        only how often each token occurs would need for an image's tokens.
    """
    sums = torch.zeros(2, dtype=torch.float64)
    counts = torch.zeros(model.config.vocab_size, dtype=torch.float64)
    images = 0
    with eval_mode(model, seed):
        for batch in batches:
            out = model(batch, tau, hard=True)
            sums += len(batch) * torch.stack([out.cross_entropy, out.mse]).double().cpu()
            counts += torch.bincount(out.ids.flatten().cpu(), minlength=len(counts))
            images += len(batch)
    cross_entropy, mse = (sums / images).tolist()
    unigram = torch.special.entr(counts / counts.sum()).sum().item() * model.config.num_tokens
    return {
        "cross_entropy": cross_entropy,
        "mse": mse,
        "loss": cross_entropy + mse,
        "unigram_entropy": unigram,
    }


@torch.no_grad()
def draw_panels(model: SLATE, image: Tensor, path: Path, seed: int) -> None:
    """Writes image | dVAE | through the slots | segments | one panel per slot, a row per image.

    Args:
        model: On any device, in any mode.
        image: Images in [0, 1], ``[B, 3, S, S]``, on the model's device.
        path: PNG file to write.
        seed: Of the initial slots.
    """
    with eval_mode(model, seed):
        ids = model.tokenize(image)
        slots, attn = model.encode(ids)
        through_slots = model.dvae.decode_ids(model.generate(slots)).clamp(0, 1)
        recon = model.dvae.decode_ids(ids).clamp(0, 1)
    save_panels(path, image.cpu(), recon.cpu(), through_slots.cpu(), attn.cpu())


@contextmanager
def eval_mode(model: SLATE, seed: int) -> Iterator[None]:
    """Eval mode under a seed of its own; the mode and the random state come back afterwards."""
    training = model.training
    device = model.out.weight.device
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        model.eval()
        try:
            yield
        finally:
            model.train(training)
