"""How much time torch.compile may take."""

from __future__ import annotations


class CompileBudget:
    """Seconds for torch.compile, which takes a time in proportion to the length of a graph.

    Args:
        limit_s: Of all compilations together, but the first, which also loads the compiler.
        predicts: Whether to start none that is likely to end beyond the limit, judging by the last one;
            else the limit says when the last one starts.
    """

    def __init__(self, limit_s: float, predicts: bool = True) -> None:
        self.limit_s, self.used_s, self.seconds_per_length = limit_s, 0.0, 0.0
        self.predicts, self.loaded = predicts, False

    @property
    def reason(self) -> str:
        """Why something is not compiled."""
        return f"torch.compile would take longer than the limit, {self.limit_s:g} s"

    def allows(self, length: int = 1) -> bool:
        """Whether to compile a graph of this length."""
        return self.used_s + self.seconds_per_length * length < self.limit_s

    def spend(self, seconds: float, length: int = 1) -> None:
        """Counts a compilation; not the first one."""
        if self.loaded:
            self.used_s += seconds
            self.seconds_per_length = seconds / length if self.predicts else 0.0
        self.loaded = True
