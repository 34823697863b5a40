from __future__ import annotations

import importlib
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
OLD = {"python": "3.11.7", "torch": "2.11.0", "triton": "3.6.0", "numpy": "2.3.5"}
NEW = {"python": "3.11.7", "torch": "2.14.1", "triton": "3.8.0", "numpy": "2.4.6"}
README = "before\n<!-- versions -->\nold\n<!-- /versions -->\nafter\n"


@pytest.fixture
def versions(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "scripts")
    return importlib.import_module("tested_versions")


def test_the_line_names_every_set_that_passed_once(versions: Any) -> None:
    rows = {
        "oldest": {**OLD, "passed": True},
        "middle": {**NEW, "passed": True},
        "newest": {**NEW, "passed": True},
    }
    text = versions.readme_with(README, rows)
    assert text == (
        "before\n<!-- versions -->\n\nAll of `scripts/test` passed with PyTorch 2.11.0 with Triton 3.6.0 and "
        "NumPy 2.3.5; PyTorch 2.14.1 with Triton 3.8.0 and NumPy 2.4.6 (Python 3.11.7).\n\n"
        "<!-- /versions -->\nafter\n"
    )
    assert versions.readme_with(text, rows) == text


def test_the_line_leaves_out_what_failed(versions: Any) -> None:
    rows = {"oldest": {**OLD, "passed": True}, "newest": {**NEW, "passed": False}}
    assert "2.14.1" not in versions.readme_with(README, rows)


def test_the_line_says_when_nothing_passed(versions: Any) -> None:
    assert "\nNo versions have passed all" in versions.readme_with(README, {})


def test_a_readme_without_a_place_for_the_line_is_refused(versions: Any) -> None:
    with pytest.raises(ValueError, match="must have <!-- versions --> and <!-- /versions --> once"):
        versions.readme_with("before\n", {})


def test_the_readme_is_up_to_date(versions: Any) -> None:
    rows = json.loads((ROOT / "scripts" / "tested_versions.json").read_text())
    readme = (ROOT / "README.md").read_text()
    assert versions.readme_with(readme, rows) == readme


def test_the_constraints_are_those_of_the_newest_that_passed() -> None:
    rows = json.loads((ROOT / "scripts" / "tested_versions.json").read_text())
    lines = (ROOT / "scripts" / "constraints.txt").read_text().splitlines()
    assert all("==" in line for line in lines[1:])
    if newest := rows.get("newest"):
        pins = {f"{name}=={newest[name]}" for name in ("torch", "triton", "numpy")}
        assert pins <= set(lines)


SETUP = f"""#!/usr/bin/env bash
set -e
mkdir -p .venv/bin
installed='{json.dumps(NEW)}'
if grep -q torch==2.11.0 "$CONSTRAINTS"; then installed='{json.dumps(OLD)}'; fi
cat > .venv/bin/python <<PYTHON
#!/usr/bin/env bash
if [[ \\$1 == -c ]]; then echo '$installed'; else echo frozen; fi
PYTHON
chmod +x .venv/bin/python
echo installed
"""
TEST = "#!/usr/bin/env bash\necho tested $1\n"


@pytest.fixture
def checkout(versions: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A repository whose setup pretends to install, and whose tests pass."""
    root = tmp_path / "checkout"
    (root / "scripts").mkdir(parents=True)
    (root / "README.md").write_text(README)
    monkeypatch.setattr(versions, "ROOT", root)
    commit(root, setup=SETUP, test=TEST)
    return root


def commit(root: Path, **scripts: str) -> None:
    for name, text in scripts.items():
        (root / "scripts" / name).write_text(text)
        (root / "scripts" / name).chmod(0o755)
    identity = ("-c", "user.name=test", "-c", "user.email=test@localhost")
    for arguments in (["init"], ["add", "scripts"], [*identity, "commit", "-m", "scripts"]):
        subprocess.run(["git", "-C", root, *arguments], check=True, capture_output=True)


def called(versions: Any, monkeypatch: pytest.MonkeyPatch, *names: str) -> int:
    monkeypatch.setattr("sys.argv", ["versions", *names])
    code: int = versions.main()
    return code


def test_every_environment_is_tried_and_the_same_versions_once(
    versions: Any, monkeypatch: pytest.MonkeyPatch, checkout: Path
) -> None:
    assert called(versions, monkeypatch) == 0
    rows = json.loads((checkout / "scripts" / "tested_versions.json").read_text())
    assert {name: row["torch"] for name, row in rows.items()} == {
        "oldest": "2.11.0",
        "middle": "2.14.1",
        "newest": "2.14.1",
    }
    assert all(row["passed"] for row in rows.values())
    logs = {name: (checkout / "runs/versions" / f"{name}.log").read_text() for name in rows}
    assert logs == {
        "oldest": "installed\ntested --all\n",
        "middle": "installed\ntested --all\n",
        "newest": "installed\n",
    }
    assert "PyTorch 2.14.1 with" in (checkout / "README.md").read_text()
    assert (checkout / "scripts" / "constraints.txt").read_text().endswith("\nfrozen\n")


def test_what_fails_is_written_down_and_the_rest_is_kept(
    versions: Any, monkeypatch: pytest.MonkeyPatch, checkout: Path
) -> None:
    assert called(versions, monkeypatch, "oldest") == 0
    commit(checkout, test="#!/usr/bin/env bash\nexit 1\n")
    assert called(versions, monkeypatch, "newest") == 1
    rows = json.loads((checkout / "scripts" / "tested_versions.json").read_text())
    assert (rows["oldest"]["passed"], rows["newest"]["passed"]) == (True, False)
    assert rows["newest"]["why"] == "scripts/test failed: see newest.log"
    assert "2.14.1" not in (checkout / "README.md").read_text()
    assert not (checkout / "scripts" / "constraints.txt").exists()


def test_versions_that_are_not_to_be_had_are_no_pass(
    versions: Any, monkeypatch: pytest.MonkeyPatch, checkout: Path
) -> None:
    monkeypatch.setitem(versions.ENVIRONMENTS, "middle", ["torch==2.13.0"])
    assert called(versions, monkeypatch, "middle") == 1
    rows = json.loads((checkout / "scripts" / "tested_versions.json").read_text())
    assert rows["middle"]["why"] == "not to be had: torch==2.13.0"


def test_a_setup_that_fails_is_no_pass(
    versions: Any, monkeypatch: pytest.MonkeyPatch, checkout: Path
) -> None:
    commit(checkout, setup="#!/usr/bin/env bash\nexit 1\n")
    assert called(versions, monkeypatch, "newest") == 1
    rows = json.loads((checkout / "scripts" / "tested_versions.json").read_text())
    assert rows["newest"] == {"passed": False, "why": "scripts/setup failed: see newest.log"}


def test_other_environments_are_refused(
    versions: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        called(versions, monkeypatch, "older")
    assert "no such environment: older" in capsys.readouterr().err
