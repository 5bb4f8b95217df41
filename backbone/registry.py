"""Names in a configuration and the classes they stand for. Imports no torch, so that names can be listed at once."""

import inspect
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, TypeVar

C = TypeVar("C", bound=type[Any])


class Registry:
    """Classes by the name that a configuration calls them. The class of a name is imported when it is asked for.

    Args:
        key: The configuration key whose value is such a name.
        shipped: The module that registers each name of the project's own.
    """

    def __init__(self, key: str, shipped: Mapping[str, str]) -> None:
        self.key, self._shipped = key, dict(shipped)
        self._classes: dict[str, type[Any]] = {}

    def names(self) -> list[str]:
        """All names, the project's own first."""
        return list(dict.fromkeys([*self._shipped, *self._classes]))

    def register(self, name: str) -> Callable[[C], C]:
        """Decorate the class that `name` stands for.

        Raises:
            ValueError: The name stands for another class already.
        """

        def decorate(cls: C) -> C:
            taken = self._classes.get(name)
            if taken is not None and inspect.getsourcefile(taken) != inspect.getsourcefile(cls):
                raise ValueError(
                    f"{self.key} {name!r} is {taken.__qualname__} of {inspect.getsourcefile(taken)} already"
                )
            cls.kind = name
            self._classes[name] = cls
            return cls

        return decorate

    def __contains__(self, name: object) -> bool:
        return name in self._shipped or name in self._classes

    def __getitem__(self, name: str) -> type[Any]:
        """The class.

        Raises:
            ValueError: No class has the name; the message lists the names there are.
        """
        if name not in self:
            raise ValueError(f"{self.key} {name!r} is unknown; choose one of {', '.join(self.names())}")
        if name not in self._classes:
            import_module(self._shipped[name])
        return self._classes[name]


ADAPTERS = Registry("ffn_adapter_type", {"adaptmlp": "backbone.adapter", "nested_lora": "backbone.nested_lora"})
