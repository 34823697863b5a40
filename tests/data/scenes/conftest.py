"""Scenes that several tests look at."""

import pytest

from fastslots.data.scenes.dataset import render_scenes


@pytest.fixture(scope="session")
def batch():
    return render_scenes(range(12), image_size=48, samples=4)
