import os

import pytest

from tests.conftest import pytest_configure


@pytest.mark.parametrize("value", ["", "0"])
def test_kernels_are_interpreted_whatever_the_environment_says(
    value: str, pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", value)
    pytest_configure(pytestconfig)
    assert os.environ["TRITON_INTERPRET"] == "1"
