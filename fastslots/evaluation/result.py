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
        unigram_entropy_nats_per_image: What a code that knows only how often each token occurs would
            need for the tokens of an image.
        seed: Of the initial slots.
        unmeasured: Metrics without a mean, each with the reason.
    """

    scores: dict[str, Tensor]
    unigram_entropy_nats_per_image: float
    seed: int
    unmeasured: dict[str, str]

    @property
    def num_images(self) -> int:
        """M."""
        return len(self.scores["slots_used_per_image"])

    @property
    def means(self) -> dict[str, Mean | None]:
        """Every metric; None for those that could not be measured."""
        unigram = Mean(self.unigram_entropy_nats_per_image, None, self.num_images)
        means: dict[str, Mean | None] = {"unigram_entropy_nats_per_image": unigram}
        means |= {name: _mean(values) for name, values in self.scores.items()}
        return means | dict.fromkeys(self.unmeasured)

    @property
    def ranked_by(self) -> str:
        """The metric that orders the images: FG-ARI, or the error through the slots without masks."""
        return "slots_squared_error_per_image" if "fg_ari" in self.unmeasured else "fg_ari"

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
