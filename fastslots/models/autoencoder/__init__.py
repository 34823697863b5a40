"""The slot autoencoder: slot attention with a spatial broadcast decoder."""

from fastslots.models.autoencoder.config import SlotAutoencoderConfig
from fastslots.models.autoencoder.measurable import MeasurableSlotAutoencoder
from fastslots.models.autoencoder.model import SlotAutoencoder
from fastslots.models.autoencoder.outputs import SlotAutoencoderLook, SlotAutoencoderOutput
from fastslots.models.autoencoder.recipe import SlotAutoencoderRecipe
from fastslots.models.autoencoder.trainable import TrainableSlotAutoencoder

__all__ = [
    "MeasurableSlotAutoencoder",
    "SlotAutoencoder",
    "SlotAutoencoderConfig",
    "SlotAutoencoderLook",
    "SlotAutoencoderOutput",
    "SlotAutoencoderRecipe",
    "TrainableSlotAutoencoder",
]
