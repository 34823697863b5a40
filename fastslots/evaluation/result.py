"""What an evaluation found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


class Mean(NamedTuple):
    """A mean over images.

    Attributes:
        mean: Over the images that count.
        standard_error: Of the mean, from the spread over images; None where that is unknown.
        images: How many count.
    """

    mean: float
    standard_error: float | None
    images: int


class Example(NamedTuple):
    """An image that stands for others.

    Attributes:
        rank: ``"best"``, ``"median"`` or ``"worst"``.
        image: Its number.
        score: Its value of the metric that ranks.
    """

    rank: str
    image: int
    score: float


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` measured.

    Attributes:
        scores: A value per image for every metric, ``[M]`` float64 on the CPU; NaN where an image has
            nothing to be measured. Squared errors are of values in [0, 1].
        overall: What was measured of all images together, by metric, such as the unigram entropy of tokens.
        seed: Of the initial slots.
        unmeasured: Metrics without a mean, each with the reason.
        error: The metric that orders images whose objects are not known; the lowest is the best.
    """

    scores: dict[str, Tensor]
    overall: dict[str, float]
    seed: int
    unmeasured: dict[str, str]
    error: str

    @property
    def num_images(self) -> int:
        """M."""
        return len(self.scores[self.error])

    @property
    def means(self) -> dict[str, Mean | None]:
        """Every metric; None for those that could not be measured."""
        means: dict[str, Mean | None] = {
            name: Mean(value, None, self.num_images) for name, value in self.overall.items()
        }
        means |= {name: _mean(values) for name, values in self.scores.items()}
        return means | dict.fromkeys(self.unmeasured)

    @property
    def ranked_by(self) -> str:
        """The metric that orders the images: FG-ARI, or an error without masks."""
        return self.error if "fg_ari" in self.unmeasured else "fg_ari"

    @property
    def examples(self) -> list[Example]:
        """The best, the median (the better of two) and the worst image; fewer if they coincide."""
        values = self.scores[self.ranked_by]
        order = values.argsort(descending=self.ranked_by == "fg_ari", stable=True)
        order = order[~values[order].isnan()]
        last = len(order) - 1
        ranks = {last // 2: "median", last: "worst", 0: "best"}
        found = [(ranks[place], int(order[place])) for place in sorted(ranks)]
        return [Example(rank, image, values[image].item()) for rank, image in found]


def _mean(values: Tensor) -> Mean:
    counted = values[~values.isnan()]
    error = counted.std().item() / len(counted) ** 0.5 if len(counted) > 1 else None
    return Mean(counted.mean().item(), error, len(counted))
