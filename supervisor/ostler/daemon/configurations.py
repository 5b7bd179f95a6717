"""The settings of each generation that is in use.

A generation has no settings until its fork server has evaluated the configuration. This can be so for the
current generation too, because a reload or a stop may be requested before the first configuration is known.
So every lookup may return None.
"""

from collections.abc import Callable, Collection

from ostler.fleet.state import State
from ostler.settings.load import Loaded


class Configurations:
    """Settings by generation.

    Args:
        state: the fleet's state, which says what the current generation is.
    """

    def __init__(self, state: Callable[[], State]) -> None:
        self._state = state
        self._loaded: dict[int, Loaded] = {}

    def __contains__(self, generation: int) -> bool:
        return generation in self._loaded

    def __bool__(self) -> bool:
        """Whether any configuration is known."""
        return bool(self._loaded)

    def get(self, generation: int) -> Loaded | None:
        return self._loaded.get(generation)

    @property
    def current(self) -> Loaded | None:
        """Of the generation that slots are filled with."""
        return self._loaded.get(self._state().current)

    @property
    def in_effect(self) -> Loaded | None:
        """The current generation's; if they are not known, those of the newest generation that has some."""
        return self.current or (self._loaded[max(self._loaded)] if self._loaded else None)

    def add(self, generation: int, loaded: Loaded) -> None:
        self._loaded[generation] = loaded

    def keep_only(self, generations: Collection[int]) -> None:
        """Forget all others."""
        self._loaded = {number: loaded for number, loaded in self._loaded.items() if number in generations}

    def snapshot(self) -> dict[int, Loaded]:
        return dict(self._loaded)

    def restore(self, loaded: dict[int, Loaded]) -> None:
        self._loaded = dict(loaded)
