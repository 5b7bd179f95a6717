"""What classes made from gunicorn's workers have in common here."""

from ostler.settings.table import Settings
from ostler.workers.base import BaseWorker


class Worker(BaseWorker):
    """Base of the worker classes with gunicorn's names. It serves nothing itself."""

    @classmethod
    def check(cls, settings: Settings) -> list[str]:
        remarks = super().check(settings)
        theirs = [kind for kind in cls.__mro__ if kind.__module__.partition(".")[0] not in _KNOWN]
        own = sorted({name for kind in theirs for name, value in vars(kind).items() if _is_code(value)})
        if own:
            remarks.append(
                f"worker_class: Ostler does not call {', '.join(own)} of {cls.__name__}; "
                "hooks such as post_fork and post_worker_init can do what they do"
            )
        return remarks


_KNOWN = {"gunicorn", "ostler", "abc", "builtins"}


def _is_code(value: object) -> bool:
    return callable(value) or isinstance(value, classmethod | staticmethod | property)
