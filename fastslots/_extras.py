"""Optional dependencies, imported where they are used."""

import importlib
from types import ModuleType


def require(module: str, extra: str) -> ModuleType:
    """Imports a module that one of the extras of fastslots installs.

    Args:
        module: Full name of the module, such as ``"PIL.Image"``.
        extra: The extra that brings it, such as ``"train"``.

    Returns:
        The module.

    Raises:
        ImportError: If it is not installed, saying which ``pip install`` brings it. An error inside
            an installed module, such as a dependency of its own that is missing, passes unchanged.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if error.name != package and error.name != module:
            raise
        raise ImportError(
            f'{package} is not installed: pip install "fastslots[{extra}]" brings it', name=package
        ) from error
