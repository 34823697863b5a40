"""What the demo's SLATE learned.

Usage: python scripts/demo_slate.py RUN
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from rich.console import Console


def main(run: Path) -> None:
    """Prints the report of a run folder."""
    console = Console(highlight=False, soft_wrap=True)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    last = [row for row in rows if row["kind"] == "validation"][-1]
    cross_entropy, unigram = last["cross_entropy"], last["unigram_entropy"]
    console.print(
        f"\nHeld-out images: {cross_entropy:.1f} nats per image for the tokens through the slots; a code "
        f"that knows only how often each token occurs needs {unigram:.1f}."
    )
    if not cross_entropy < unigram:
        sys.exit("demo: the model did not beat the unigram code: see metrics.jsonl")
    console.print(f"Pictures: {sorted((run / 'samples').glob('*.png'))[-1]}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
