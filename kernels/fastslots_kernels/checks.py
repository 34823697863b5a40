"""What arguments must be, each rule once: an error names the argument, the rule and the value.

A wrong type is a TypeError, a wrong value a ValueError. Numbers of NumPy are numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor


def check_count(name: str, value: Any, least: int, when: str = "") -> int:
    """The value as an int of at least `least`; `when` ends the rule.

    A symbolic int of ``torch.export`` or ``torch.compile`` stays what it is.

    Raises:
        TypeError: If it is no integer.
        ValueError: If it is below `least`, or no int64.
    """
    if isinstance(value, bool) or not isinstance(value, int | torch.SymInt | Integral):
        raise TypeError(f"{name} must be an int; got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}{when}; got {value}")
    if torch.compiler.is_compiling():
        return value  # type: ignore[return-value] # a symbol acts as one
    count = int(value)
    if count >= 2**63:  # which tensors cannot hold
        raise ValueError(f"{name} must be below 2**63; got {count}")
    return count


def check_number(
    name: str,
    value: Any,
    *,
    least: float | None = None,
    above: float | None = None,
    below: float | None = None,
    finite: bool = True,
) -> float:
    """The value as a float within bounds; NaN is within none.

    Raises:
        TypeError: If it is no real number.
        ValueError: If it breaks a rule.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | Real):
        raise TypeError(f"{name} must be a number; got {value!r}")
    try:
        number = float(value)
    except OverflowError:  # of a huge int
        number = math.inf
    rules = []
    if least is not None:
        rules.append((number >= least, f"at least {least}"))
    if above is not None:
        rules.append((number > above, f"above {above}"))
    if below is not None:
        rules.append((number < below, f"below {below}"))
    if finite and below is None:
        rules.append((math.isfinite(number), "finite"))
    if not all(holds for holds, _ in rules):
        raise ValueError(f"{name} must be {' and '.join(rule for _, rule in rules)}; got {value}")
    return number


def check_choice(name: str, value: Any, choices: Sequence[str]) -> str:
    """The value, one of some names.

    Raises:
        ValueError: If it is none of them.
    """
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be one of {tuple(choices)}; got {value!r}")
    return value


def check_flag(name: str, value: Any) -> bool:
    """The value, True or False.

    Raises:
        TypeError: If it is neither.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False; got {value!r}")
    return value


def check_multiple(name: str, value: int, divisor_name: str, divisor: int) -> None:
    """Raises ValueError unless the value is a multiple of another one."""
    if value % divisor:
        raise ValueError(f"{name} must be a multiple of {divisor_name} {divisor}; got {value}")


def check_is(name: str, value: Any, kind: type, advice: str = "") -> None:
    """Raises TypeError unless the value is a `kind`, with advice if there is some."""
    if not isinstance(value, kind):
        what = f"{type(value).__name__}: {advice}" if advice else type(value).__name__
        raise TypeError(f"{name} must be a {kind.__name__}; got {what}")


def check_tensor(name: str, value: Any) -> None:
    """Raises TypeError unless the value is a tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor; got {type(value).__name__}")
