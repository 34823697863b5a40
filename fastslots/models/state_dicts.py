"""State dicts: as others wrap them, and into a model."""

import warnings
from collections.abc import Collection, Mapping
from functools import reduce

import torch
from torch import Tensor, nn

_CONTAINERS = ("model", "state_dict", "model_state_dict")
_COMPILED = "_orig_mod."
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_MOST_NAMED = 5


def find_entries(checkpoint: object, landmark: str) -> dict[str, Tensor]:
    """The entries of the model in a state dict, or in a checkpoint that holds one.

    Args:
        checkpoint: A state dict; or a dict with one as ``"model"``, ``"state_dict"`` or
            ``"model_state_dict"``.
        landmark: As of `plain_entries`.

    Returns:
        The entries by their plain names, see `plain_entries`.

    Raises:
        TypeError: If there is no mapping of names to tensors.
        ValueError: If there are several state dicts or models.
    """
    state = checkpoint
    while isinstance(state, Mapping):
        inner = [name for name in _CONTAINERS if isinstance(state.get(name), Mapping)]
        if len(inner) > 1:
            raise ValueError(
                f"state_dict must hold one state dict; got {len(inner)}, as {_listed(inner)}: "
                "pass the one that is meant"
            )
        if not inner:
            break
        state = state[inner[0]]
    rule = "state_dict must map names to tensors, or hold such a mapping as " + _listed(_CONTAINERS)
    if not isinstance(state, Mapping):
        raise TypeError(f"{rule}; got {type(state).__name__}")
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise TypeError(f"{rule}; got {name!r}: {type(tensor).__name__}")
    return plain_entries(state, landmark)


def plain_entries(state: Mapping[str, Tensor], landmark: str) -> dict[str, Tensor]:
    """The entries of a model, without the prefixes of ``torch.compile``, DDP or a model around it.

    Entries that have not the prefix of the model's belong to what is around it, and are left out.

    Args:
        state: The entries.
        landmark: The name of an entry that every such model has, and once.

    Raises:
        ValueError: If there are several models.
    """
    plain = {name: name.replace(_COMPILED, "") for name in state}
    prefixes = [
        name.removesuffix(landmark)
        for name in plain.values()
        if name == landmark or name.endswith(f".{landmark}")
    ]
    if len(prefixes) > 1:
        raise ValueError(
            f"the state dict must hold one model; got {len(prefixes)}, under {_listed(prefixes)}: "
            "pass the entries of the one that is meant"
        )
    prefix = prefixes[0] if prefixes else ""
    return {
        name.removeprefix(prefix): state[key]
        for key, name in plain.items()
        if name.startswith(prefix)
    }


def fill(
    model: nn.Module,
    entries: Mapping[str, Tensor],
    source: str,
    advice: str,
    names: Mapping[str, str] | None = None,
) -> None:
    """Gives ``model`` the values of ``entries``, and their dtype: the widest, if there are several.

    Args:
        model: The model.
        entries: One tensor for every entry of the model's state dict.
        source: What the entries are of, begins messages.
        advice: What to do about entries that do not fit, ends the message.
        names: The entries' names by the model's names, where they differ.

    Raises:
        ValueError: If an entry is missing, unexpected, misshaped, without values or of a dtype that no model
            runs in, naming some of those; or if the model is on the meta device.
    """
    names = names or {}
    own = {names.get(name, name): tensor for name, tensor in model.state_dict().items()}
    if any(tensor.is_meta for tensor in own.values()):
        raise ValueError(
            "a model on the meta device cannot hold values: load it outside of torch.device('meta')"
        )
    if problems := _problems(own, entries):
        raise ValueError(f"{source} {'; '.join(problems)}{advice}")
    floating = {name: entries[name].dtype for name in own if own[name].is_floating_point()}
    model.to(_widest(floating, source))
    model.load_state_dict({name: entries[names.get(name, name)] for name in model.state_dict()})


def some(names: Collection[str]) -> str:
    """The first few of many names, and how many more there are."""
    shown = list(names)[:_MOST_NAMED]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def _problems(own: Mapping[str, Tensor], entries: Mapping[str, Tensor]) -> list[str]:
    """What keeps entries from being those of a state dict."""
    common = {name: (entries[name], tensor) for name, tensor in own.items() if name in entries}
    found = {
        "misses": [name for name in own if name not in entries],
        "holds the unexpected": [name for name in entries if name not in own],
        "holds the misshaped": [
            f"{name} {tuple(entry.shape)} in place of {tuple(tensor.shape)}"
            for name, (entry, tensor) in common.items()
            if entry.shape != tensor.shape
        ],
        "holds no values, but the meta device, for": [
            name for name, (entry, _) in common.items() if entry.is_meta
        ],
        f"holds, in place of {', '.join(map(str, _DTYPES))}, the dtypes": [
            f"{entry.dtype} of {name}"
            for name, (entry, tensor) in common.items()
            if entry.dtype not in _DTYPES and tensor.is_floating_point()
        ],
    }
    return [f"{what} {some(those)}" for what, those in found.items() if those]


def _widest(dtypes: Mapping[str, torch.dtype], source: str) -> torch.dtype:
    """The dtype that holds the values of all entries exactly; says so if these have several."""
    widest = reduce(torch.promote_types, dtypes.values())
    first: dict[torch.dtype, str] = {}
    for name, dtype in dtypes.items():
        first.setdefault(dtype, name)
    if len(first) > 1:
        kinds = ", ".join(f"{name} is {dtype}" for dtype, name in first.items())
        warnings.warn(
            f"{source} mixes dtypes ({kinds}), and a model runs in one: all became {widest}, "
            "which holds their values exactly",
            stacklevel=4,
        )
    return widest


def _listed(names: Collection[str]) -> str:
    *others, last = map(repr, names)
    return f"{', '.join(others)} or {last}"
