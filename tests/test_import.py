"""What `import fastslots` needs."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

PROBE = """
import sys

FORBIDDEN = {"triton", "torchvision", "PIL", "matplotlib", "typer", "rich", "safetensors", "fiftyone",
             "accelerate", "tensorboard", "scipy", "pynvml", "pytest"}
import torch, einops
for name in FORBIDDEN:
    sys.modules.setdefault(name)  # None: as if it were not installed
loaded = set(sys.modules)
import fastslots
module = fastslots.SlotAttention(2, 3, 8, 8, 8)
slots, attn = module(torch.randn(1, 5, 8), fastslots.SlotInit(3, 8)(1))
slots.sum().backward()
fresh = {name.partition(".")[0] for name in set(sys.modules) - loaded} - set(sys.stdlib_module_names)
print(sorted(name for name in fresh if name not in {"torch", "einops", "fastslots", "fastslots_kernels"}))
"""


@pytest.mark.slow
def test_import_and_a_training_step_need_torch_and_einops_alone() -> None:
    run = subprocess.run(
        [sys.executable, "-c", PROBE], capture_output=True, text=True, timeout=120, check=False
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip().endswith("[]"), run.stdout


LAZY = """
import sys, fastslots
assert not {"torch", "fastslots_kernels"} & set(sys.modules)
assert fastslots.noise.sample_keys and fastslots.SLATE is fastslots.models.slate.SLATE
from fastslots import *
assert all(globals()[name] is getattr(fastslots, name) for name in fastslots.__all__)
try:
    fastslots.colours
except AttributeError as error:
    print(error)
"""


@pytest.mark.slow
def test_the_package_is_there_at_once_and_what_it_holds_when_asked_for() -> None:
    run = subprocess.run(
        [sys.executable, "-c", LAZY], capture_output=True, text=True, timeout=120, check=False
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout == "module 'fastslots' has no attribute 'colours'\n"


def test_numpy_is_installed_with_the_package() -> None:
    """Without it PyTorch warns whenever it is imported."""
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    assert any(re.match("numpy\\b", requirement) for requirement in project["dependencies"])
