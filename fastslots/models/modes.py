"""Eval mode for a while."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode; the mode from before comes back afterwards."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
