"""All models by the names that commands know them by."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from fastslots.models import autoencoder, slate
from fastslots.models.autoencoder import (
    MeasurableSlotAutoencoder,
    SlotAutoencoder,
    SlotAutoencoderConfig,
    SlotAutoencoderRecipe,
    TrainableSlotAutoencoder,
)
from fastslots.models.measurable import Measurable
from fastslots.models.pretrained import PretrainedModel, find_model, kind_of
from fastslots.models.recipe import Recipe
from fastslots.models.slate import (
    SLATE,
    MeasurableSLATE,
    SLATEConfig,
    SLATERecipe,
    TrainableSLATE,
)
from fastslots.models.slot_config import SlotConfig
from fastslots.models.trainable import Trainable

Settings = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class ModelKind:
    """A model, and what it is trained and measured by.

    Attributes:
        model: The model.
        config: Its settings.
        recipe: Its recipe.
        trainable: Its glue for training.
        measurable: Its glue for evaluation and pictures.
        cpu_settings: What differs from the defaults on a CPU, by group: model, recipe, data.
    """

    model: type[PretrainedModel]
    config: type[SlotConfig]
    recipe: type[Recipe]
    trainable: type[Trainable]
    measurable: type[Measurable[Any]]
    cpu_settings: Settings


MODELS: Mapping[str, ModelKind] = MappingProxyType(
    {
        "slate": ModelKind(
            SLATE,
            SLATEConfig,
            SLATERecipe,
            TrainableSLATE,
            MeasurableSLATE,
            slate.recipe.CPU_SETTINGS,
        ),
        "autoencoder": ModelKind(
            SlotAutoencoder,
            SlotAutoencoderConfig,
            SlotAutoencoderRecipe,
            TrainableSlotAutoencoder,
            MeasurableSlotAutoencoder,
            autoencoder.recipe.CPU_SETTINGS,
        ),
    }
)
"""What there is; the first is what was trained before there were others."""


def load_model(folder: str | os.PathLike[str], **settings: Any) -> PretrainedModel:
    """Reads a model of whatever kind; see `PretrainedModel.from_pretrained`.

    Raises:
        ValueError: As there, and if the kind is none of these.
        OSError: As there.
    """
    path = find_model(folder)
    kind = kind_of(path)
    for known in MODELS.values():
        if known.model.kind == kind:
            return known.model.from_pretrained(path, **settings)
    kinds = ", ".join(known.model.kind for known in MODELS.values())
    raise ValueError(f"{path} must hold a model of kind {kinds}; got {kind!r}")


def trainable_of(model: PretrainedModel) -> Trainable:
    """The glue for training a model.

    Raises:
        TypeError: If the model is none of these.
    """
    return _known(model).trainable(model)


def measurable_of(model: PretrainedModel) -> Measurable[Any]:
    """The glue for measuring a model.

    Raises:
        TypeError: If the model is none of these.
    """
    return _known(model).measurable(model)


def _known(model: PretrainedModel) -> ModelKind:
    for known in MODELS.values():
        if isinstance(model, known.model):
            return known
    kinds = " or ".join(known.model.__name__ for known in MODELS.values())
    raise TypeError(f"model must be a {kinds}; got {type(model).__name__}")
