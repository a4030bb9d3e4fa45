# SPDX-License-Identifier: Apache-2.0
"""Modules of other packages that run when something of them is asked for, not at their import."""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

__all__ = ["run_later"]

_LOCK = threading.RLock()


def run_later(*names: str) -> None:
    """Put off running the modules ``names`` to the first look at an attribute of each.

    One that is imported already stays as it is; of one that does not exist the import says so.
    """
    sys.meta_path.insert(0, _LaterFinder(names))


class _LaterModule(ModuleType):
    """``__path__`` counts as an attribute, so that a package runs before a part of it does."""

    def __getattr__(self, name: str) -> Any:
        with _LOCK:
            if type(self) is _LaterModule:
                if "_is_busy" in vars(self):
                    raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
                self._is_busy = True
                try:
                    spec = self.__spec__
                    assert spec is not None
                    assert spec.loader is not None
                    if spec.submodule_search_locations is not None:
                        self.__path__ = spec.submodule_search_locations
                    spec.loader.exec_module(self)
                    self.__class__ = ModuleType  # type: ignore[assignment] # the language allows it
                finally:
                    del self._is_busy
        return getattr(self, name)


class _LaterLoader(Loader):
    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = _LaterModule(spec.name)
        module._is_busy = True  # while the import looks which attributes there are
        return module

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self._loader
        vars(module).pop("__path__", None)
        del module._is_busy


class _ThereLoader(Loader):
    """Of a part that came to be while the path of its package was looked at, which runs it."""

    def __init__(self, module: ModuleType) -> None:
        self._module, self._spec = module, module.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:  # noqa: ARG002 as in the base class
        return self._module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec


class _LaterFinder(MetaPathFinder):
    def __init__(self, names: Sequence[str]) -> None:
        self._names = frozenset(names)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        there = sys.modules.get(fullname)
        if there is not None and target is None and fullname.rpartition(".")[0] in self._names:
            return ModuleSpec(fullname, _ThereLoader(there))
        if fullname not in self._names:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _LaterLoader(spec.loader)
        return spec
