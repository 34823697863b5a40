"""What changes the weights: Adam, and Muon for matrices where a recipe asks for it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fastslots.training.muon import Muon

if TYPE_CHECKING:
    from accelerate import Accelerator

COUNT, MUON_SUM = "step", "momentum_buffer"
"""Of what is kept of a parameter: the one that is a count of steps, whose dtype is its own; Muon's."""
# What each keeps of a parameter.
_STATE: dict[type[torch.optim.Optimizer], tuple[str, ...]] = {
    torch.optim.Adam: (COUNT, "exp_avg", "exp_avg_sq"),
    Muon: (MUON_SUM,),
}


class Optimizers:
    """The optimisers of a run, as one.

    Args:
        groups: The parameters that learn, by what shares a learning rate.
        muon: How many times as large the rates of Muon are, which takes what has two dimensions; 0: Adam
            takes all.
        tables: What has two dimensions but is no matrix, such as embeddings: Adam takes them.
    """

    def __init__(
        self,
        groups: Mapping[str, list[nn.Parameter]],
        muon: float = 0.0,
        tables: Iterable[Tensor] = (),
    ) -> None:
        self.muon = muon
        kept = {id(table) for table in tables}
        matrices: dict[str, list[nn.Parameter]] = {name: [] for name in groups}
        others: dict[str, list[nn.Parameter]] = {name: [] for name in groups}
        for name, group in groups.items():
            for p in group:
                of_muon = muon and p.ndim == 2 and id(p) not in kept
                (matrices if of_muon else others)[name].append(p)
        for_adam, for_muon = (
            [{"params": group, "name": name} for name, group in part.items() if group]
            for part in (others, matrices)
        )
        self.all: list[torch.optim.Optimizer] = []
        if for_adam:
            self.all.append(torch.optim.Adam(for_adam, fused=True))
        if for_muon:
            self.all.append(Muon(for_muon))
        self._prepared = list(self.all)

    def prepare(self, accelerator: Accelerator) -> None:
        """Steps as the accelerator does."""
        self._prepared = [accelerator.prepare(optimizer) for optimizer in self.all]

    def set_rates(self, rates: Mapping[str, float]) -> None:
        """Sets the learning rate of every group."""
        for optimizer in self.all:
            times = self.muon if isinstance(optimizer, Muon) else 1.0
            for group in optimizer.param_groups:
                group["lr"] = rates[group["name"]] * times

    def zero_grad(self) -> None:
        """Forgets all gradients."""
        for optimizer in self._prepared:
            optimizer.zero_grad()

    def step(self) -> None:
        """Changes the weights."""
        for optimizer in self._prepared:
            optimizer.step()

    def entries(self) -> Iterator[tuple[nn.Parameter, str, dict[str, Tensor]]]:
        """All that is kept: of which parameter, by which key, in which state.

        Of a parameter that has not learned yet these are zeros, from which an optimiser begins.
        """
        for optimizer in self.all:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    state = optimizer.state[parameter]
                    for key in _STATE[type(optimizer)]:
                        if key not in state:
                            state[key] = _zeros(parameter, key)
                        yield parameter, key, state


def _zeros(parameter: nn.Parameter, key: str) -> Tensor:
    if key == COUNT:
        return torch.zeros((), dtype=torch.float32, device=parameter.device)
    return torch.zeros_like(parameter)
