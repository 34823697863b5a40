"""Writes the tables and plots of benchmarks/results into the READMEs.

    python benchmarks/readme.py [--check]

The three files of `FILES` are made in the same way.

What stands between ``<!-- benchmark:NAME -->`` and ``<!-- /benchmark -->`` is replaced by the tables of
benchmarks/results/NAME.json; NAME may lie in a folder, as h200/slot-attention.
``<!-- benchmark:NAME iterations=1,7,63 -->`` shows these rows alone. Cases that show at least three numbers
of iterations get a plot of all, which is drawn again. In the same way ``<!-- slate-steps:NAME -->`` to
``<!-- /slate-steps -->`` get the tables and the plot of training steps.
``<!-- gpu:measured -->`` to ``<!-- /gpu -->`` get what `scripts/gpu_run report` wrote of every card, what
`fastslots compare` wrote there included, and
``<!-- gpu:kernels -->``, in kernels/README.md, where the time of a training step goes.
``<!-- headline:ratios -->`` to ``<!-- /headline -->`` get ratios of all of these,
``<!-- demo:NAME -->`` to ``<!-- /demo -->`` the table of a `scripts/demo` whose ``demo.json`` is NAME.json,
``<!-- shipped:NAME -->`` to ``<!-- /shipped -->`` what ``python -m fastslots.shipped`` wrote of a model, and
``<!-- seeds:NAME -->`` to ``<!-- /seeds -->`` the table of trainings that differ by their seeds.
``--check`` writes nothing and fails if one of the files is not up to date.
"""

import argparse
import os
import re
import sys
from pathlib import Path
from typing import NamedTuple

from fastslots.benchmark import Results, StepResults, markdown, plot_case, plot_steps, step_markdown
from fastslots.benchmark.attention.reports.card import (
    accuracy_markdown,
    attention_markdown,
    kernels_markdown,
)
from fastslots.benchmark.attention.reports.speedups import speedup_markdown
from fastslots.benchmark.attention.reports.speedups_plot import plot_speedups
from fastslots.benchmark.headline import headline
from fastslots.benchmark.tables import environment_line
from fastslots.comparison.record import FILE as COMPARISON
from fastslots.comparison.record import Comparison
from fastslots.comparison.report import markdown as comparison_markdown
from fastslots.demo.record import DemoResults, demo_markdown
from fastslots.shipped.record import ShippedResults, seeds_markdown, shipped_markdown

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
KINDS = ("benchmark", "slate-steps", "gpu", "headline", "demo", "shipped", "seeds")
FILES = ("README.md", "benchmarks/README.md", "kernels/README.md")
BLOCK = re.compile(
    rf"(?P<start><!-- (?P<kind>{'|'.join(KINDS)}):(?P<name>[\w/-]+)"
    r"(?: iterations=(?P<iterations>[\d,]+))? -->\n).*?(?P<end><!-- /(?P=kind) -->)",
    re.S,
)


class Place(NamedTuple):
    """Where results are, and what is done with them."""

    results: Path
    link: str  # to that folder, from the README
    draw: bool


def made(name: str, *, draw: bool) -> str:
    """What a file of `FILES` should hold; with `draw` its plots are drawn too.

    Raises:
        OSError: As of `filled`, or if the file cannot be read.
        ValueError: As of `filled`.
    """
    path = ROOT / name
    link = Path(os.path.relpath(RESULTS, path.parent)).as_posix()
    return filled(path.read_text(), RESULTS, draw=draw, link=link)


def filled(readme: str, results: Path, *, draw: bool, link: str = "benchmarks/results") -> str:
    """The text of a README with every block made anew.

    Args:
        readme: The text.
        results: Folder of the JSON files.
        draw: Whether to draw the plots too.
        link: What pictures' links begin with: that folder as seen from the README.

    Raises:
        OSError: If a block's file cannot be read, or a plot not be written.
        ValueError: If a block's file is no results file, or a marker stands without the other.
    """
    for kind in KINDS:
        blocks = [match for match in BLOCK.finditer(readme) if match["kind"] == kind]
        if len(re.findall(f"<!-- /?{kind}", readme)) != 2 * len(blocks):
            raise ValueError(
                f"a README must have a <!-- /{kind} --> for every <!-- {kind}:NAME -->, in pairs"
            )

    place = Place(results, link, draw)

    def block(match: re.Match[str]) -> str:
        path = results / f"{match['name']}.json"
        counts = [int(count) for count in (match["iterations"] or "").split(",") if count]
        if match["kind"] == "slate-steps":
            parts = _step_parts(path, place)
        elif match["kind"] == "gpu":
            parts = _gpu_parts(match["name"], place)
        elif match["kind"] == "headline":
            parts = [headline(results)]
        elif match["kind"] == "demo":
            found = DemoResults.load(path)
            parts = [demo_markdown(found), environment_line(found.environment)]
        elif match["kind"] == "shipped":
            parts = _shipped_parts(path, place)
        elif match["kind"] == "seeds":
            parts = [seeds_markdown(ShippedResults.load(path))]
        else:
            parts = _parts(path, place, counts or None)
        return match["start"] + "\n" + "\n\n".join(filter(None, parts)) + "\n\n" + match["end"]

    return BLOCK.sub(block, readme)


def _parts(path: Path, place: Place, shown: list[int] | None) -> list[str]:
    found = Results.load(path)
    parts = [markdown(found, shown)]
    for case, rows in found.cases().items():
        present = {row.iterations for row in rows}
        if len(present if shown is None else present & set(shown)) >= 3:
            picture = path.with_name(f"{case}.png")
            if place.draw:
                plot_case(found, case, picture)
            alt = f"Time and memory against the number of iterations: {case}"
            parts.insert(0, _image(alt, picture, place))
    return parts


def _gpu_parts(what: str, place: Place) -> list[str]:
    """Of every card: "measured" or "kernels"."""
    folders = sorted(path.parent for path in place.results.glob("*/slot-attention.json"))
    if not folders:
        return ["Nothing was measured on a GPU yet."]
    parts = []
    for folder in folders:
        times = Results.load(folder / "slot-attention.json")
        card = f"**{times.environment['device']}**"
        if what == "kernels":
            parts += [card, kernels_markdown(folder)]
            continue
        if place.draw:
            plot_speedups(times, folder / "speed-ups.png")
        alt = "Speed-ups over the usual forms, and the share of a copy's bandwidth"
        parts += [card, _image(alt, folder / "speed-ups.png", place)]
        parts += [speedup_markdown(times), accuracy_markdown(folder)]
        for name in ("slate-steps", "slate-steps-compiled"):
            if (folder / f"{name}.json").exists():
                parts += _step_parts(folder / f"{name}.json", place)
        parts.append(attention_markdown(folder))
        if (folder / "comparison" / COMPARISON).exists():
            parts += _comparison_parts(folder / "comparison", place)
    return parts


def _comparison_parts(folder: Path, place: Place) -> list[str]:
    """What `fastslots compare` has written."""
    found = Comparison.load(folder / COMPARISON)
    alt = "Losses, gradient norms and scores of SLATE, implicit and unrolled"
    picture = _image(alt, folder / "comparison.png", place)
    pixels, seconds = found.settings["image_size"], found.seconds
    title = f"**SLATE at {pixels} pixels, implicit and unrolled, {seconds:.0f} s for both**"
    return [title, picture, comparison_markdown(found), environment_line(found.environment)]


def _image(alt: str, picture: Path, place: Place) -> str:
    return f"![{alt}]({place.link}/{picture.relative_to(place.results).as_posix()})"


def _shipped_parts(path: Path, place: Place) -> list[str]:
    found = ShippedResults.load(path)
    curve = path.with_name(f"{path.stem}-curve.png")
    return [
        _image("What it makes of held-out scenes", path.with_suffix(".png"), place),
        shipped_markdown(found),
        _image("Its loss in training", curve, place),
    ]


def _step_parts(path: Path, place: Place) -> list[str]:
    found = StepResults.load(path)
    picture = path.with_suffix(".png")
    if place.draw:
        plot_steps(found, picture)
    alt = "Images per second and peak memory of SLATE's training step"
    return [_image(alt, picture, place), step_markdown(found)]


def main() -> int:
    """Writes the READMEs, or checks them; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail if out of date")
    check = parser.parse_args().check
    code = 0
    for name in FILES:
        before = (ROOT / name).read_text()
        after = made(name, draw=not check)
        if not check:
            (ROOT / name).write_text(after)
        elif after != before:
            print(f"{name} is not up to date: run python benchmarks/readme.py", file=sys.stderr)
            code = 1
    return code


if __name__ == "__main__":
    sys.exit(main())
