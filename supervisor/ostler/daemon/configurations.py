"""The settings of each generation that is in use, and the environment that it runs in.

A generation has no settings until its fork server has evaluated the configuration. This can be so for the
current generation too, because a reload or a stop may be requested before the first configuration is known.
So every lookup may return None.
"""

from collections.abc import Callable, Collection

from ostler.daemon.environment.environments import GenerationEnvironment
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
        self._environments: dict[int, GenerationEnvironment] = {}

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

    def environment(self, generation: int) -> GenerationEnvironment | None:
        """The one of its newest fork server that has been configured."""
        return self._environments.get(generation)

    def add(self, generation: int, loaded: Loaded, environment: GenerationEnvironment | None = None) -> None:
        self._loaded[generation] = loaded
        if environment is not None:
            self._environments[generation] = environment

    def keep_only(self, generations: Collection[int]) -> None:
        """Forget all others."""
        self._loaded = {number: loaded for number, loaded in self._loaded.items() if number in generations}
        kept = {number: found for number, found in self._environments.items() if number in generations}
        self._environments = kept

    def snapshot(self) -> tuple[dict[int, Loaded], dict[int, GenerationEnvironment]]:
        """For `restore` in the program that comes next."""
        return dict(self._loaded), dict(self._environments)

    def restore(self, loaded: dict[int, Loaded], environments: dict[int, GenerationEnvironment]) -> None:
        """Continue where the program before this one stopped."""
        self._loaded, self._environments = dict(loaded), dict(environments)
