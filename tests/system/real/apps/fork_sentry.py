"""The SDK is initialised when the module is imported, and sends an event then; or by a hook."""

import os
import uuid

import sentry_sdk
from fork_common import Outcome, app_of


def set_up() -> None:
    sentry_sdk.init(os.environ["SENTRY_DSN"])


def work() -> Outcome:
    """name: the text of the event."""
    name = f"{os.getpid()} {uuid.uuid4().hex}"
    sentry_sdk.capture_message(name)
    return {"name": name}


if os.environ["MADE"] == "when imported":
    set_up()
    work()
    sentry_sdk.flush(10)
app = app_of(work)
