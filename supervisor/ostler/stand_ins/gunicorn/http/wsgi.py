from ostler.hooks.requests import HookResponse as Response

__all__ = ["Response"]
