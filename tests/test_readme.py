"""The README's example, as it is printed."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

README = Path(__file__).parents[1] / "README.md"


def run_example(features: Tensor) -> dict[str, Any]:
    """Runs the example of "In your own model"; what it defines."""
    section = README.read_text().partition("## In your own model")[2]
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert code is not None
    names: dict[str, Any] = {"features": features}
    exec(code[1], names)
    return names


class Example(nn.Module):
    """The modules of the example, and its call."""

    def __init__(self) -> None:
        super().__init__()
        names = run_example(torch.randn(2, 9, 128))
        self.init, self.slot_attention = names["init"], names["slot_attention"]

    def forward(self, features: Tensor) -> Tensor:
        slots, _ = self.slot_attention(features, self.init(features.shape[0]))
        return slots.square().mean()


def train_two_steps(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    torch.manual_seed(0)
    model = DistributedDataParallel(Example())
    learns = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learns)
    torch.manual_seed(1 + rank)
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.randn(2, 9, 128)).backward()
        optimizer.step()
    assert all(p.grad is not None for p in learns)
    torch.save([p.detach() for p in model.parameters()], folder / f"{rank}.pt")
    distributed.destroy_process_group()


def test_the_example_gives_the_shapes_it_says() -> None:
    names = run_example(torch.randn(2, 9, 128))
    assert names["slots"].shape == (2, 7, 64)
    assert names["attn"].shape == (2, 9, 7)


@pytest.mark.slow
def test_two_processes_train_the_example(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(train_two_steps, (tmp_path,), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)
