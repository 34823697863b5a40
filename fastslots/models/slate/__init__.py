"""SLATE: slots learnt by predicting an image's tokens from them."""

from fastslots.models.slate.config import SLATEConfig
from fastslots.models.slate.model import SLATE, SLATEOutput

__all__ = ["SLATE", "SLATEConfig", "SLATEOutput"]
