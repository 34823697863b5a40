"""Command-line flags made from dataclasses: every field a flag, its help from the docstring."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import Field, fields
from typing import Annotated, Any, Optional, get_type_hints

import typer

Command = Callable[..., Any]


def with_flags(
    groups: Mapping[str, type],
    *,
    on_cpu: Mapping[str, Mapping[str, Any]] | None = None,
    without: Collection[str] = (),
    default: str | None = None,
    plain: bool = False,
) -> Callable[[Command], Command]:
    """Adds a flag to a command for every field of some dataclasses.

    The command receives the flags that were given as keyword arguments ``flags``, a dict by the name of
    the group; the help shows them where ``flags`` stands among its parameters.

    Args:
        groups: Dataclasses by group name. No field name may occur twice.
        on_cpu: The defaults that differ on a CPU, by group and field, for the help.
        without: Fields that get no flag.
        default: What the help calls the default of every flag. Default: the field's.
        plain: Whether the help says nothing of defaults, and gives groups no panel of their own.
    """

    def decorate(command: Command) -> Command:
        signature = inspect.signature(command)
        hints = get_type_hints(command, include_extras=True)
        own = [p.replace(annotation=hints[p.name]) for p in signature.parameters.values()]
        place = list(signature.parameters).index("flags")
        parameters: list[inspect.Parameter] = []
        owner: dict[str, str] = {}
        for group, cls in groups.items():
            types, help_texts = get_type_hints(cls), argument_help(cls)
            for field in _in_reading_order(cls):
                if field.name in without:
                    continue
                owner[field.name] = group
                word = field.name.replace("_", "-")
                flag = f"--{word}/--no-{word}" if types[field.name] is bool else f"--{word}"
                usual = f"default: {default or field.default}"
                if on_cpu is not None and field.name in on_cpu[group]:
                    usual += f"; on a CPU: {on_cpu[group][field.name]}"
                option = typer.Option(
                    flag,
                    help=help_texts[field.name] + f" ({usual})" * (not plain),
                    rich_help_panel=None if plain else group.capitalize(),
                    show_default=False,
                )
                parameters.append(
                    inspect.Parameter(
                        field.name,
                        inspect.Parameter.KEYWORD_ONLY,
                        default=None,
                        # typer reads Optional[...], built at run time: no `X | None` syntax here.
                        annotation=Annotated[Optional[types[field.name]], option],  # noqa: UP045
                    )
                )

        parameters = [*own[:place], *parameters, *own[place + 1 :]]

        def run(**arguments: Any) -> Any:
            flags: dict[str, dict[str, Any]] = {group: {} for group in groups}
            for name, group in owner.items():
                value = arguments.pop(name)
                if value is not None:
                    flags[group][name] = value
            return command(**arguments, flags=flags)

        run.__name__, run.__doc__ = command.__name__, command.__doc__
        run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        return run

    return decorate


def _in_reading_order(cls: type) -> list[Field[Any]]:
    """The fields of a dataclass; those that it adds to another one stand where that one says."""
    found = list(fields(cls))
    added = [field for field in found if field.name in inspect.get_annotations(cls)]
    if len(added) == len(found):
        return found
    rest = [field for field in found if field not in added]
    place = 1 + [field.name for field in rest].index(cls.added_after)  # type: ignore[attr-defined]
    return [*rest[:place], *added, *rest[place:]]


def listed(values: Iterable[object], last: str = "or") -> str:
    """Values as help names them: "1, 2 or 3"."""
    *others, end = map(str, values)
    return f"{', '.join(others)} {last} {end}"


def argument_help(cls: type) -> dict[str, str]:
    """The ``Args:`` sections of a class's docstring and its bases', by argument, without markup."""
    found: dict[str, str] = {}
    for part in reversed(cls.__mro__):
        found |= _arguments_of(part.__doc__ or "")
    return found


def _arguments_of(docstring: str) -> dict[str, str]:
    text = inspect.cleandoc(docstring)
    section = re.search(r"^Args:\n(.*?)(?=^\S|\Z)", text, re.S | re.M)
    entries = re.findall(
        r"^    (\w+): (.*?)(?=^    \w|\Z)", section[1] if section else "", re.S | re.M
    )
    return {name: " ".join(words.replace("``", "").split()) for name, words in entries}
