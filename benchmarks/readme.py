"""Writes the tables and plots of benchmarks/results into README.md.

    python benchmarks/readme.py [--check]

What stands between ``<!-- benchmark:NAME -->`` and ``<!-- /benchmark -->`` is replaced by the tables of
benchmarks/results/NAME.json. ``<!-- benchmark:NAME iterations=1,7,63 -->`` shows these rows alone. Cases
that show at least three numbers of iterations get a plot of all, which is drawn again. ``--check``
writes nothing and fails if README.md is not up to date.
"""

import argparse
import re
import sys
from pathlib import Path

from fastslots.benchmark import Results, markdown, plot_case

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(
    r"(?P<start><!-- benchmark:(?P<name>[\w-]+)(?: iterations=(?P<iterations>[\d,]+))? -->\n)"
    r".*?(?P<end><!-- /benchmark -->)",
    re.S,
)


def filled(readme: str, results: Path, *, draw: bool) -> str:
    """The text of README.md with every block made anew.

    Args:
        readme: The text.
        results: Folder of the JSON files.
        draw: Whether to draw the plots too.

    Raises:
        OSError: If a block's file cannot be read, or a plot not be written.
        ValueError: If a block's file is no results file, or a marker stands without the other.
    """
    markers = len(re.findall("<!-- /?benchmark", readme))
    if markers != 2 * len(BLOCK.findall(readme)):
        raise ValueError(
            "README.md must have a <!-- /benchmark --> for every <!-- benchmark:NAME -->, in pairs"
        )

    def block(match: re.Match[str]) -> str:
        found = Results.load(results / f"{match['name']}.json")
        counts = match["iterations"]
        shown = [int(count) for count in counts.split(",")] if counts else None
        parts = [markdown(found, shown)]
        for case, rows in found.cases().items():
            present = {row.iterations for row in rows}
            if len(present if shown is None else present & set(shown)) >= 3:
                if draw:
                    plot_case(found, case, results / f"{case}.png")
                alt = f"Time and memory against the number of iterations: {case}"
                parts.insert(0, f"![{alt}](benchmarks/results/{case}.png)")
        return match["start"] + "\n" + "\n\n".join(parts) + "\n\n" + match["end"]

    return BLOCK.sub(block, readme)


def main() -> int:
    """Writes README.md, or checks it; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail if out of date")
    check = parser.parse_args().check
    path = ROOT / "README.md"
    before = path.read_text()
    after = filled(before, ROOT / "benchmarks" / "results", draw=not check)
    if check:
        if after != before:
            print("README.md is not up to date: run python benchmarks/readme.py", file=sys.stderr)
        return int(after != before)
    path.write_text(after)
    return 0


if __name__ == "__main__":
    sys.exit(main())
