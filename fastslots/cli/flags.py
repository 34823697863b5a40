"""Command-line flags made from dataclasses: every field a flag, its help from the docstring."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import Field, dataclass, fields, is_dataclass
from typing import Annotated, Any, Optional, get_type_hints

import typer

Command = Callable[..., Any]
Kinds = Mapping[str, type]


@dataclass(frozen=True)
class _Flag:
    """A field of some dataclasses, as a flag.

    Attributes:
        group: That it is of.
        name: Of the field.
        kind: Its type.
        help: What it is and what its default is.
    """

    group: str
    name: str
    kind: Any
    help: str


def with_flags(
    groups: Mapping[str, type | Kinds],
    *,
    on_cpu: Mapping[str, Mapping[str, Mapping[str, Any]]] | None = None,
    without: Collection[str] = (),
    default: str | None = None,
    plain: bool = False,
) -> Callable[[Command], Command]:
    """Adds a flag to a command for every field of some dataclasses.

    The command receives the flags that were given as keyword arguments ``flags``, a dict by the name of
    the group; the help shows them where ``flags`` stands among its parameters.

    Args:
        groups: Dataclasses by group name; or several of a group, by the kind that the command will choose: a
            field that several of them have is one flag. No field name may occur in two groups.
        on_cpu: The defaults that differ on a CPU, by kind, group and field, for the help.
        without: Fields that get no flag.
        default: What the help calls the default of every flag. Default: the field's.
        plain: Whether the help says nothing of defaults, and gives groups no panel of their own.
    """

    def decorate(command: Command) -> Command:
        signature = inspect.signature(command)
        hints = get_type_hints(command, include_extras=True)
        own = [p.replace(annotation=hints[p.name]) for p in signature.parameters.values()]
        place = list(signature.parameters).index("flags")
        found = [
            flag
            for group, classes in groups.items()
            for flag in _flags_of(
                group,
                classes if isinstance(classes, Mapping) else {"": classes},
                on_cpu or {},
                None if plain else default or "",
            )
            if flag.name not in without
        ]
        parameters = [
            *own[:place],
            *(_parameter(flag, plain=plain) for flag in found),
            *own[place + 1 :],
        ]

        def run(**arguments: Any) -> Any:
            flags: dict[str, dict[str, Any]] = {group: {} for group in groups}
            for flag in found:
                value = arguments.pop(flag.name)
                if value is not None:
                    flags[flag.group][flag.name] = value
            return command(**arguments, flags=flags)

        run.__name__, run.__doc__ = command.__name__, command.__doc__
        run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        return run

    return decorate


def _parameter(flag: _Flag, *, plain: bool) -> inspect.Parameter:
    word = flag.name.replace("_", "-")
    option = typer.Option(
        f"--{word}/--no-{word}" if flag.kind is bool else f"--{word}",
        help=flag.help,
        rich_help_panel=None if plain else flag.group.capitalize(),
        show_default=False,
    )
    return inspect.Parameter(
        flag.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        # typer reads Optional[...], built at run time: no `X | None` syntax here.
        annotation=Annotated[Optional[flag.kind], option],  # noqa: UP045
    )


def _flags_of(
    group: str,
    kinds: Kinds,
    on_cpu: Mapping[str, Mapping[str, Mapping[str, Any]]],
    default: str | None,
) -> Iterator[_Flag]:
    """The flags of a group, those of the first class in front.

    Args:
        group: Its name.
        kinds: Its classes.
        on_cpu: As of `with_flags`.
        default: What all defaults are called, "" for what they are, None if nothing is said of them.
    """
    names = dict.fromkeys(field.name for cls in kinds.values() for field in _in_reading_order(cls))
    texts = {kind: argument_help(cls) for kind, cls in kinds.items()}
    types = {kind: get_type_hints(cls) for kind, cls in kinds.items()}
    for name in names:
        having = [kind for kind, cls in kinds.items() if name in _names(cls)]
        usual = {}
        for kind in having:
            field = next(field for field in fields(kinds[kind]) if field.name == name)
            usual[kind] = str(default or field.default)
            cpu = on_cpu.get(kind, {}).get(group, {})
            if name in cpu and not default:
                usual[kind] += f", on a CPU {cpu[name]}"
        said = _said({kind: texts[kind][name] + " " for kind in having}, kinds, "{}: {}")
        if default is not None:
            said += f"(default: {_said(usual, kinds, '{} {}', '; ')})"
        yield _Flag(group, name, types[having[0]][name], said.strip())


def _said(texts: Mapping[str, str], kinds: Kinds, form: str, between: str = "") -> str:
    """A text, or those of several kinds, each once and in the form with the kinds that it is of."""
    of: dict[str, list[str]] = {}
    for kind, text in texts.items():
        of.setdefault(text, []).append(kind)
    return between.join(
        text if len(those) == len(kinds) else form.format(" and ".join(those), text)
        for text, those in of.items()
    )


def _names(cls: type) -> set[str]:
    return {field.name for field in fields(cls)}


def _in_reading_order(cls: type) -> list[Field[Any]]:
    """The fields of a dataclass; those that it adds to another one stand where that one says."""
    found = list(fields(cls))
    bases = [base for base in cls.__mro__[1:] if is_dataclass(base)]
    if not bases:
        return found
    known = set().union(*map(_names, bases))
    rest = [field for field in found if field.name in known]
    place = 1 + [field.name for field in rest].index(cls.added_after)  # type: ignore[attr-defined]
    return [*rest[:place], *(f for f in found if f.name not in known), *rest[place:]]


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
