import sys

import pytest

from fastslots._extras import require


def test_returns_an_installed_module():
    assert require("os.path", "train") is sys.modules["os.path"]


@pytest.mark.parametrize("module", ["no_such_package", "no_such_package.part"])
def test_names_the_extra_that_brings_a_missing_module(module):
    with pytest.raises(
        ImportError,
        match=r'^no_such_package is not installed: pip install "fastslots\[train\]" brings it$',
    ) as raised:
        require(module, "train")
    assert raised.value.name == "no_such_package"


def test_passes_on_the_error_of_a_dependency_missing_inside_the_module(tmp_path, monkeypatch):
    (tmp_path / "half_installed.py").write_text("import no_such_dependency\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="No module named 'no_such_dependency'"):
        require("half_installed", "train")
