"""Scenes that several tests look at."""

import pytest


@pytest.fixture(scope="session")
def batch():
    # Not before TRITON_INTERPRET is set: see tests/conftest.py.
    from fastslots.data.scenes.dataset import render_scenes  # noqa: PLC0415

    return render_scenes(range(12), image_size=48, samples=4)
