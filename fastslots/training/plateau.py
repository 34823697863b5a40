"""Learning rates that are halved when the validation loss stagnates."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass
class Plateau:
    """Halves the learning rates whenever the validation loss has stagnated.

    Attributes:
        factor: Multiplies all learning rates.
        best: The lowest validation loss so far.
        stagnant: Validations since then.
    """

    factor: float = 1.0
    best: float = math.inf
    stagnant: int = 0

    def update(self, loss: float, patience: int) -> bool:
        """Takes a validation loss; says whether it is the best so far. A `patience` of 0 never halves."""
        if loss < self.best:
            self.best, self.stagnant = loss, 0
            return True
        self.stagnant += 1
        if self.stagnant >= patience > 0:
            self.factor, self.stagnant = self.factor / 2, 0
        return False
