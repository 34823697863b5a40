"""Data sets: made-up scenes and folders of images."""
