from ostler.hooks.requests import HookRequest as Request

__all__ = ["Request"]
