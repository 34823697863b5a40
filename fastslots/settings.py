"""The rules that all dataclasses of settings share."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import fields
from types import MappingProxyType
from typing import Any, get_type_hints

from fastslots_kernels.checks import check_choice, check_count, check_flag, check_number

_NO_CHOICES: Mapping[str, Sequence[str]] = MappingProxyType({})


def check_fields(
    settings: Any,
    *,
    may_be_zero: Collection[str] = (),
    may_be_infinite: Collection[str] = (),
    choices: Mapping[str, Sequence[str]] = _NO_CHOICES,
) -> None:
    """Checks every field of a frozen dataclass by its type, and makes numbers of NumPy Python's.

    An int is at least 1, a float above 0 and finite.

    Args:
        settings: The dataclass; its fields are of type bool, int, float, str, or one of these or None.
        may_be_zero: Fields whose number may be 0.
        may_be_infinite: Fields whose number may be infinite.
        choices: What a str may be, by field. Default: anything.

    Raises:
        TypeError: If a field has the wrong type, naming it and the value.
        ValueError: If a value breaks its rule, naming field, rule and value.
    """
    hints = get_type_hints(type(settings))
    for name in (field.name for field in fields(settings)):
        value, kind, zero = getattr(settings, name), hints[name], name in may_be_zero
        if name in choices:
            check_choice(name, value, choices[name])
        elif kind is bool:
            check_flag(name, value)
        elif kind is int:
            value = check_count(name, value, 0 if zero else 1)
        elif kind is float:
            bound = {"least": 0} if zero else {"above": 0}
            value = check_number(name, value, finite=name not in may_be_infinite, **bound)
        elif not isinstance(value, kind):
            rule = "a str" if kind is str else "a str or None"
            raise TypeError(f"{name} must be {rule}; got {value!r}")
        object.__setattr__(settings, name, value)  # frozen, and not handed out yet
