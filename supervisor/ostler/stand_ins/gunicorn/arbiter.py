"""`server` of hooks."""

from ostler.hooks.objects import HookServer as Arbiter

__all__ = ["Arbiter"]
