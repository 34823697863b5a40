"""Runs scripts/test --all with several versions of PyTorch and writes down which passed.

Each environment gets a fresh clone of the last commit, whose scripts/setup makes a fresh .venv. What passed
is written to scripts/tested_versions.json, from there to README.md, and the newest set that passed to
scripts/constraints.txt, which scripts/setup installs. An environment takes a download of several GB and the
time of scripts/test.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import subprocess
import tempfile
import time
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parent.parent
# What pip is held to. The last has no limits but those of pyproject.toml and becomes scripts/constraints.txt.
ENVIRONMENTS = {
    "oldest": ["torch==2.11.0", "triton==3.6.0", "numpy<2.4"],
    "middle": ["torch==2.14.1", "triton==3.8.0"],
    "newest": [],
}
NAMED = {"torch": "PyTorch", "triton": "Triton", "numpy": "NumPy"}
LINE = re.compile(r"(?<=<!-- versions -->\n).*?(?=<!-- /versions -->)", re.S)
INSTALLED = f"""
import json, platform
from importlib.metadata import version
print(json.dumps({{"python": platform.python_version()}} | {{n: version(n) for n in {list(NAMED)}}}))
"""

Row = dict[str, Any]


def readme_with(readme: str, rows: dict[str, Row]) -> str:
    """The text of README.md with the line of versions made anew.

    Args:
        readme: The text.
        rows: What scripts/tested_versions.json holds.

    Raises:
        ValueError: If the text has no place for the line.
    """
    passed = [row for row in rows.values() if row["passed"]]
    sets = dict.fromkeys(_described(row) for row in passed)
    pythons = sorted({row["python"] for row in passed})
    line = f"All of `scripts/test` passed with {'; '.join(sets)} (Python {', '.join(pythons)})."
    if not passed:
        line = "No versions have passed all of `scripts/test`."
    if len(LINE.findall(readme)) != 1:
        raise ValueError("README.md must have <!-- versions --> and <!-- /versions --> once")
    return LINE.sub(f"\n{line}\n\n", readme)


def unmet(installed: dict[str, str], pins: list[str]) -> list[str]:
    """The exact versions asked for that are not those installed: scripts/setup took others."""
    exact = [pin.split("==") for pin in pins if "==" in pin]
    return [f"{name}=={version}" for name, version in exact if installed[name] != version]


def try_environment(name: str, tried: dict[str, Row], folder: Path, log: Path) -> tuple[Row, str]:
    """Runs scripts/test --all in a fresh clone with a fresh .venv, unless these versions were tried before.

    Args:
        name: One of `ENVIRONMENTS`.
        tried: Rows of this commit so far.
        folder: Where to clone to; must not exist.
        log: Gets all that the two scripts print.

    Returns:
        The row, and what ``pip freeze`` says.
    """
    pins = ENVIRONMENTS[name]
    python = folder / ".venv" / "bin" / "python"
    subprocess.run(["git", "clone", "--quiet", ROOT, folder], check=True)
    constraints = folder.with_name("constraints.txt")
    constraints.write_text("".join(f"{pin}\n" for pin in pins))
    with log.open("w") as output:
        environment = {**os.environ, "CONSTRAINTS": str(constraints)}
        if _logged(["scripts/setup"], folder, output, environment):
            return {"passed": False, "why": f"scripts/setup failed: see {log.name}"}, ""
        installed = json.loads(_said(python, "-c", INSTALLED))
        frozen = _said(python, "-m", "pip", "freeze", "--exclude-editable")
        if missing := unmet(installed, pins):
            why = f"not to be had: {', '.join(missing)}"
            return {**installed, "passed": False, "why": why}, frozen
        for row in tried.values():
            if row.items() >= installed.items():
                return row, frozen
        start = time.monotonic()
        code = _logged(["scripts/test", "--all"], folder, output, dict(os.environ))
    row = {
        **installed,
        "passed": code == 0,
        "minutes": round((time.monotonic() - start) / 60, 1),
        "commit": _said("git", "-C", folder, "rev-parse", "--short=10", "HEAD").strip(),
        "date": datetime.date.today().isoformat(),
    }
    return row if code == 0 else {**row, "why": f"scripts/test failed: see {log.name}"}, frozen


def main() -> int:
    """Runs what is asked for and writes the files; returns the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"of {', '.join(ENVIRONMENTS)}; default: all"
    )
    names = parser.parse_args().names or list(ENVIRONMENTS)
    if wrong := set(names) - set(ENVIRONMENTS):
        parser.error(f"no such environment: {', '.join(sorted(wrong))}")
    path, readme = ROOT / "scripts" / "tested_versions.json", ROOT / "README.md"
    logs = ROOT / "runs" / "versions"
    rows: dict[str, Row] = json.loads(path.read_text()) if path.exists() else {}
    logs.mkdir(parents=True, exist_ok=True)
    tried: dict[str, Row] = {}
    for name in names:
        with tempfile.TemporaryDirectory(prefix="fastslots-") as folder:
            row, frozen = try_environment(name, tried, Path(folder, "clone"), logs / f"{name}.log")
        tried[name] = rows[name] = row
        print(f"{name}: {row}", flush=True)
        path.write_text(json.dumps(rows, indent=2) + "\n")
        readme.write_text(readme_with(readme.read_text(), rows))
        if name == list(ENVIRONMENTS)[-1] and row["passed"]:
            head = "# What passed scripts/test last; written by scripts/versions.\n"
            (ROOT / "scripts" / "constraints.txt").write_text(head + frozen)
    return int(not all(row["passed"] for row in tried.values()))


def _described(row: Row) -> str:
    first, *others = (f"{title} {row[name]}" for name, title in NAMED.items())
    return f"{first} with {' and '.join(others)}"


def _logged(command: list[str], folder: Path, log: IO[str], environment: dict[str, str]) -> int:
    return subprocess.run(command, cwd=folder, env=environment, stdout=log, stderr=log).returncode


def _said(*command: Path | str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
