"""SLATE: slots learnt by predicting an image's tokens from them."""

from fastslots.models.slate.config import SLATEConfig
from fastslots.models.slate.measurable import MeasurableSLATE
from fastslots.models.slate.model import SLATE
from fastslots.models.slate.outputs import SLATELook, SLATEOutput
from fastslots.models.slate.recipe import SLATERecipe
from fastslots.models.slate.trainable import TrainableSLATE

__all__ = [
    "SLATE",
    "MeasurableSLATE",
    "SLATEConfig",
    "SLATELook",
    "SLATEOutput",
    "SLATERecipe",
    "TrainableSLATE",
]
