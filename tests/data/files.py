"""Images on the disk, whole and not."""

import torch
from PIL import Image


def noise(size=(24, 20), mode="RGB", seed=0):
    """An image of uniform noise; size is (width, height)."""
    bands = len(Image.new(mode, (1, 1)).getbands())
    generator = torch.Generator().manual_seed(seed)
    data = torch.randint(256, (size[0] * size[1] * bands,), generator=generator)
    return Image.frombytes(mode, size, bytes(data.tolist()))


def truncate(path):
    """Keeps the header of an image file and loses the end of its data."""
    noise((40, 40)).save(path)
    path.write_bytes(path.read_bytes()[:-300])
