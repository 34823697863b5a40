"""SLATE: slots learnt by predicting an image's tokens from them."""

from fastslots.slate.config import SLATEConfig
from fastslots.slate.model import SLATE, SLATEOutput

__all__ = ["SLATE", "SLATEConfig", "SLATEOutput"]
