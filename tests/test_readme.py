"""What is printed for users is true: examples run, commands and flags, links and tables."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import pytest
import torch
import typer.main
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.readme import FILES, made
from fastslots.cli.app import app

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for folder in (ROOT, ROOT / "benchmarks", ROOT / "kernels")
    for path in folder.glob("*.md")
)


def run_example(features: Tensor) -> dict[str, Any]:
    """Runs the example of "In your own model"; what it defines."""
    section = README.read_text().partition("## In your own model")[2]
    code = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert code is not None
    names: dict[str, Any] = {"features": features}
    exec(code[1], names)
    return names


class Example(nn.Module):
    """The modules of the example, and its call."""

    def __init__(self) -> None:
        super().__init__()
        names = run_example(torch.randn(2, 9, 128))
        self.init, self.slot_attention = names["init"], names["slot_attention"]

    def forward(self, features: Tensor) -> Tensor:
        slots, _ = self.slot_attention(features, self.init(features.shape[0]))
        return slots.square().mean()


def train_two_steps(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    torch.manual_seed(0)
    model = DistributedDataParallel(Example())
    learns = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(learns)
    torch.manual_seed(1 + rank)
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.randn(2, 9, 128)).backward()
        optimizer.step()
    assert all(p.grad is not None for p in learns)
    torch.save([p.detach() for p in model.parameters()], folder / f"{rank}.pt")
    distributed.destroy_process_group()


def test_the_example_gives_the_shapes_it_says() -> None:
    names = run_example(torch.randn(2, 9, 128))
    assert names["slots"].shape == (2, 7, 64)
    assert names["attn"].shape == (2, 9, 7)


@pytest.mark.slow
def test_two_processes_train_the_example(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(train_two_steps, (tmp_path,), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)


def prose(page: str) -> str:
    """The text of a page, without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", (ROOT / page).read_text(), flags=re.M | re.S)


def anchors(page: str) -> set[str]:
    """What a link may name in a page: its headings as GitHub writes them."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page: str) -> list[str]:
    """Relative links of a page that lead nowhere."""
    found = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        parts = urlparse(link)
        if parts.scheme:
            continue
        target = ((ROOT / page).parent / parts.path if parts.path else ROOT / page).resolve()
        there = target.is_relative_to(ROOT) and target.exists()
        if not there or (parts.fragment and parts.fragment not in anchors(str(target))):
            found.append(link)
    return found


@pytest.mark.parametrize("page", PAGES)
def test_every_relative_link_leads_somewhere(page: str) -> None:
    assert broken_links(page) == []


def test_a_link_that_leads_nowhere_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.md").write_text("# Of It\n[x](b.md) [y](#of-it) ![z](c.png) [w](a.md#of-that)\n")
    monkeypatch.setattr("tests.test_readme.ROOT", tmp_path)
    assert broken_links("a.md") == ["b.md", "c.png", "a.md#of-that"]


@pytest.mark.parametrize("name", FILES)
def test_tables_are_those_of_the_results(name: str) -> None:
    assert made(name, draw=False) == (ROOT / name).read_text()


def printed_commands(page: str) -> list[list[str]]:
    """Words of every `fastslots` command in a page's blocks of code, without comments."""
    blocks = re.findall(r"^```bash$(.*?)^```$", (ROOT / page).read_text(), re.M | re.S)
    lines = [line.partition("#")[0] for block in blocks for line in block.splitlines()]
    found = [re.search(r"\bfastslots (?=[a-z])(.*)", line) for line in lines]
    return [match[1].split() for match in found if match]


@pytest.mark.parametrize("page", PAGES)
def test_every_printed_command_has_its_flags(page: str) -> None:
    for words in printed_commands(page):
        command: Any = typer.main.get_command(app)
        while words and words[0] in getattr(command, "commands", {}):
            command = command.commands[words.pop(0)]
        assert command.name not in (None, "fastslots"), words
        options = {name for p in command.params for name in (*p.opts, *p.secondary_opts)}
        assert {word for word in words if word.startswith("--")} <= options, (command.name, words)


def test_commands_are_found_in_the_readme() -> None:
    names = {words[0] for words in printed_commands("README.md")}
    assert names == {"benchmark", "train", "evaluate", "reconstruct", "segment", "compare"}
