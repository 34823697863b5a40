"""What the tests of the training steps' benchmark measure."""

from __future__ import annotations

import torch

from fastslots.benchmark import BASELINE, StepCase, StepProvider
from fastslots.models.slate import SLATEConfig

CPU = torch.device("cpu")
CONFIG = SLATEConfig(
    image_size=16,
    vocab_size=40,
    d_model=16,
    num_decoder_blocks=1,
    num_decoder_heads=2,
    num_slots=3,
    slot_size=16,
    mlp_hidden_size=16,
    num_iterations=2,
)
TINY = StepCase(CONFIG, 2)
UNROLLED, IMPLICIT = (StepProvider("fastslots", gradient) for gradient in ("unrolled", "implicit"))
EAGER = [BASELINE, UNROLLED, IMPLICIT]
