"""Classes by the names that a configuration uses. Imports no torch, so that names can be listed at once."""

import inspect
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

C = TypeVar("C", bound=type[Any])


class Registry:
    """Classes by name, each imported when it is first asked for.

    Args:
        key: The configuration key whose value is a name.
        shipped: The module that registers each of the project's own names.
    """

    def __init__(self, key: str, shipped: Mapping[str, str]) -> None:
        self.key, self._shipped = key, dict(shipped)
        self._classes: dict[str, type[Any]] = {}
        self._files: dict[str, str] = {}

    def names(self) -> list[str]:
        """Return all names, the project's own first."""
        return list(dict.fromkeys([*self._shipped, *self._classes]))

    def names_of(self, file: Path) -> list[str]:
        """Return the names that a file (its absolute path) has registered."""
        return sorted(name for name, registered in self._files.items() if registered == str(file))

    def register(self, name: str) -> Callable[[C], C]:
        """Register the decorated class; raise ValueError if the name stands for another class already."""

        def decorate(cls: C) -> C:
            file = str(inspect.getsourcefile(cls))
            taken = self._files.get(name, file)
            if self._shipped.get(name, cls.__module__) != cls.__module__:
                taken = self._shipped[name]
            same = self._classes.get(name, cls).__qualname__ == cls.__qualname__  # a file may be run again
            if taken != file or not same:
                raise ValueError(f"{self.key} {name!r} is registered by {taken} already; choose another name")
            cls.kind = name
            self._classes[name], self._files[name] = cls, file
            return cls

        return decorate

    def ships(self, name: object) -> bool:
        """Return whether a name is the project's own."""
        return isinstance(name, str) and name in self._shipped

    def __contains__(self, name: object) -> bool:
        return name in self._shipped or name in self._classes

    def __getitem__(self, name: str) -> type[Any]:
        """Return the class of a name; raise ValueError, with the names there are, if it has none."""
        if name not in self:
            raise ValueError(f"{self.key} {name!r} is unknown; choose one of {', '.join(self.names())}")
        if name not in self._classes:
            import_module(self._shipped[name])
        return self._classes[name]


ADAPTERS = Registry("ffn_adapter_type", {"adaptmlp": "backbone.adapter", "nested_lora": "backbone.nested_lora"})
