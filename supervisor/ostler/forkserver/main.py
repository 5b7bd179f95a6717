"""The main function of a fork server.

Single-threaded and blocking: configure, load, then fork on demand (see `forking`). The end of the supervisor
closes the channel, and that ends the fork server.

Every process that is forked from it continues in `main`: each worker, and the fork server that a worker may
become at its end.
"""

import os
import random
from functools import partial

from ostler.forkserver.forking import Asked, Forking, end_orphans, leave, leave_unless_waiting, take_over
from ostler.forkserver.preparation import Preparation
from ostler.ipc import messages
from ostler.ipc.channel import Channel
from ostler.logs.standard_streams import ignore_write_errors
from ostler.osapi.priority import lower_priority, was_lowered
from ostler.workers import app_forks, boot, signals
from ostler.workers.multiprocessing_state import end_children


def main(channel_fd: int, lowered: int) -> None:
    """Be the fork server until the channel ends, or a worker until that ends.

    lowered: how the priority was lowered (for good: only booting workers wait for it); a worker raises its
    own.
    """
    supervisor = os.getppid()
    ignore_write_errors()  # before any user code: it may keep the streams it finds
    # The supervisor ends this process by closing the channel.
    signals.ignore_group_signals()
    app_forks.register()
    app_forks.keep_private(lambda: [channel_fd])
    was_lowered(lowered)
    random.seed()
    # Without its supervisor it ends, also while an app is being loaded.
    signals.on_hang_up(channel_fd, partial(leave_unless_waiting, supervisor))
    channel: Channel[Asked] = Channel.from_fd(channel_fd, Asked)
    try:
        preparation = Preparation(channel)
        generation = preparation.run()
    except (BrokenPipeError, ConnectionResetError):
        return  # the supervisor has ended while it was answered
    if generation is None or preparation.sinks is None:
        return
    seconds = generation.settings.graceful_timeout
    loaded = messages.AppLoaded(remark=preparation.remark, replaces=generation.hooks.replaces_background_work)
    inheritance = Forking(channel, generation, preparation.sinks).run(loaded)
    if inheritance is None:
        end_orphans(supervisor)
        # Without the app's atexit functions: each worker runs its own copy of them.
        end_children(seconds)
        leave()
    while inheritance is not None:
        zygote = boot.run(inheritance)
        lower_priority()
        inheritance = take_over(zygote, supervisor).run(messages.ZygoteReady())
    # It was a worker.
    boot.leave(0)
