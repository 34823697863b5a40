"""Gives Triton's cache keys that are the same on machines with the same version of Triton.

For processes with this folder on PYTHONPATH. Triton's own keys hold hashes of its files and of ptxas, which
differ between builds for versions of Python. Nothing is imported that the process does not import itself.
"""

import sys
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

NAME = "triton.runtime.cache"


class _Finder:
    """Finds the module that makes keys, and replaces its functions once it is there."""

    @staticmethod
    def find_spec(name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if name != NAME:
            return None
        spec = PathFinder.find_spec(name, path)
        if spec is None or spec.loader is None:
            return None
        loader: Any = spec.loader
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            _replace_keys(module)

        loader.exec_module = exec_module
        return spec


def _replace_keys(cache: Any) -> None:
    def triton_key() -> str:
        return f"triton {cache.__version__}"

    def get_cache_key(src: Any, backend: Any, options: Any, env_vars: Any) -> str:
        return f"{triton_key()}-{src.hash()}-{options.hash()}"  # the options name the chip

    cache.triton_key, cache.get_cache_key = triton_key, get_cache_key


def _run_the_next() -> None:
    """The module of this name that Python would have imported without this one."""
    here = __file__.rpartition("/")[0]
    spec = PathFinder.find_spec(__name__, [path for path in sys.path if path != here])
    if spec is not None and spec.loader is not None:
        spec.loader.exec_module(ModuleType(__name__))


sys.meta_path.insert(0, _Finder)
_run_the_next()
