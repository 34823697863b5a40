"""Rendered scenes of simple objects, as CLEVR's, with the masks of the objects."""

from fastslots.data.scenes.dataset import SceneBatch, Scenes

__all__ = ["SceneBatch", "Scenes"]
