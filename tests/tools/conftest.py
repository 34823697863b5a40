"""Tests of the programs interpret kernels as the kernels' own tests do."""

from tests.kernels.conftest import replace_the_language_once, unchecked_offsets

__all__ = ["replace_the_language_once", "unchecked_offsets"]
