"""The record of each child that an upgrade in place carries: all of its fields, also future ones."""

import enum
import socket
import types
import typing
from typing import Any, Literal, get_args, get_origin

import msgspec
import pytest

from ostler.daemon.children.handles import ForkServerHandle, WorkerHandle
from ostler.daemon.children.hooks import HooksState
from ostler.daemon.children.reaper import Dead, ReaperState
from ostler.daemon.children.records import (
    CarriedForkServer,
    CarriedWorker,
    ForkServerRecord,
    WorkerRecord,
)
from ostler.daemon.children.registry import ChildRegistry, ChildrenState
from ostler.fleet.model import ExitStatus
from ostler.ipc import messages, wire
from ostler.settings.load import Loaded, load
from tests.unit.daemon.fakes import fake_ports


def unusual(kind: Any, default: Any) -> Any:
    """A value of a type that is not the default. A field of a type that is not known here fails the test."""
    origin = get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        return unusual(next(one for one in get_args(kind) if one is not type(None)), default)
    if origin is Literal:
        return next(value for value in get_args(kind) if value != default)
    if origin in (list, set):
        return origin([unusual(get_args(kind)[0], None)])
    if origin is dict:
        return {unusual(get_args(kind)[0], None): unusual(get_args(kind)[1], None)}
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return next(value for value in kind if value is not default)
    if kind is Loaded:
        return load({"wsgi_app": "a:b", "workers": 3}, {}, None, lambda: 1)
    if kind is messages.Decided:
        return messages.Decided("file:conf.py", unusual(Loaded, None), user="x", warnings=["careful"])
    if kind is messages.HookDue:
        return messages.HookDue("child_exit", 7, 2, 4711, -9, old=1, new=2)
    if kind is bool:
        return not default
    simple = {
        int: 41,
        float: 41.5,
        str: "text",
        bytearray: bytearray(b"dump"),
        Dead: Dead(5, ExitStatus(3), 9),
    }
    return simple[kind]


def filled(kind: type[Any]) -> Any:
    """A struct all of whose fields have values that are not their defaults."""
    hints = typing.get_type_hints(kind)
    values = {
        field.name: unusual(
            hints[field.name],
            field.default_factory() if callable(field.default_factory) else field.default,
        )
        for field in msgspec.structs.fields(kind)
    }
    for field in msgspec.structs.fields(kind):
        assert field.required or values[field.name] != field.default, field.name
    return kind(**values)


@pytest.mark.parametrize("kind", [ForkServerRecord, WorkerRecord, HooksState, ReaperState])
def test_every_field_is_carried(kind: type[Any]) -> None:
    """The state that is written and read again is the same, field by field."""
    record = filled(kind)
    again = wire.decoder(kind)(wire.encode(record))
    for field in msgspec.structs.fields(kind):
        assert getattr(again, field.name) == getattr(record, field.name), field.name


@pytest.mark.parametrize("kind", [ForkServerRecord, WorkerRecord])
def test_a_handle_carries_its_record_whole(kind: type[Any]) -> None:
    """A handle that was carried has the same record and descriptors as before."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    record = filled(kind)
    record.is_ours = False  # there is no such process
    carried: Any
    if kind is WorkerRecord:
        carried = CarriedWorker(record, ours.detach(), theirs.detach())
        handle: Any = WorkerHandle.restored(wire.decoder(CarriedWorker)(wire.encode(carried)))
    else:
        theirs.close()
        carried = CarriedForkServer(record, ours.detach())
        handle = ForkServerHandle.restored(wire.decoder(CarriedForkServer)(wire.encode(carried)))
    try:
        assert handle.record == record
        assert handle.carried() == carried
    finally:
        handle.close()


def test_fork_servers_that_leave_have_no_channel_afterwards() -> None:
    """The channel ends with the old program, so no message is sent to them;
    why their generation ended is still known.
    """
    record = filled(ForkServerRecord)
    record.is_ours = False
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    before = ChildRegistry()
    handle = ForkServerHandle.restored(CarriedForkServer(record, ours.detach()))
    before.add_fork_server(handle)
    before.leave(handle)
    state = before.snapshot()
    assert state.descriptors() == []
    after = ChildRegistry()
    after.restore(wire.decoder(ChildrenState)(wire.encode(state)))
    handle.close()
    theirs.close()
    (left,) = after.leaving.values()
    assert after.fork_servers == {}
    assert left.channel.fileno() == -1
    assert left.record.exit_cause == record.exit_cause
    assert (left.record.pending_hooks, left.record.can_call_hooks) == ([], False)
    assert not left.record.background_only
    left.close()


def test_the_registry_finds_children() -> None:
    """By worker id, by pid, by cell; a removed worker is not found."""
    children = fake_ports().children
    record = filled(WorkerRecord)
    record.is_ours = False
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    worker = WorkerHandle.restored(CarriedWorker(record, ours.detach(), theirs.detach()))
    children.add_worker(worker)
    assert children.worker_with_pid(41) is children.with_pid(41) is worker
    assert children.worker_with_cell(41) is worker
    assert children.is_known(worker)
    assert list(children) == [worker]
    assert children.remove_worker(41) is worker
    assert children.with_pid(41) is children.worker_with_cell(41) is None
    assert not children.is_known(worker)
    assert children.remove_worker(41) is None
    worker.close()
