"""Scenes to look at in tests."""

import torch

from fastslots.data.scenes.sampling import sample_scenes

SMALL = {"image_size": 24, "samples": 1}


def parameters(number=64, min_objects=3, max_objects=6, seed=0):
    return sample_scenes(
        torch.arange(number), seed=seed, min_objects=min_objects, max_objects=max_objects
    )
