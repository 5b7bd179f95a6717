"""A complete worker class for `ostler.workers`: wsgiref's HTTP on our listeners, one connection at a time."""

import os
import select
from time import monotonic_ns
from urllib.parse import quote
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from ostler.workers.base import BaseWorker


class ReferenceWorker(BaseWorker):
    @classmethod
    def create(cls, context):
        return cls(context)

    def __init__(self, context):
        self.context = context
        self.slot = context.accounting.thread_slot(0)
        self.readers = {}
        self.answered = 0
        self.quota = context.quota
        self.server = ReferenceServer(self)
        self.poll = select.poll()
        # When a signal handler calls `drain`, it must also end a wait that is about to begin.
        self.wake = os.eventfd(0, os.EFD_NONBLOCK)
        self.add_reader(self.wake, lambda: os.eventfd_read(self.wake))
        self.listeners = {listener.fileno(): listener for listener in context.listeners}
        for fd in self.listeners:
            self.poll.register(fd, select.POLLIN)

    def run(self):
        while not self.draining:
            for fd, _ in self.poll.poll(1000):
                if fd in self.readers:
                    self.readers[fd]()
                elif not self.draining:
                    self.accept(self.listeners[fd])
            self.context.accounting.heartbeat(monotonic_ns())

    def accept(self, listener):
        try:
            connection, address = listener.accept()
        except BlockingIOError:
            return  # a sibling has accepted it first
        connection.settimeout(5)
        self.slot.connection_opened()
        self.server.finish_request(connection, address)
        connection.close()
        self.slot.connection_closed()
        if self.context.access is not None:
            self.context.access.flush()

    def app(self, environ, start_response):
        """Runs the app; its request is shown in the scoreboard, counted and logged."""
        method, path, protocol = (environ[key] for key in ("REQUEST_METHOD", "PATH_INFO", "SERVER_PROTOCOL"))
        answer = {"status": "500 Internal Server Error", "headers": [], "body": b""}

        def start(status, headers, exc_info=None):
            answer.update(status=status, headers=headers)
            return start_response(status, headers, exc_info)

        started = monotonic_ns()
        self.slot.begin(method, quote(path).encode(), started)
        try:
            answer["body"] = b"".join(self.context.app(environ, start))
        except Exception:
            answer["status"] = "500 Internal Server Error"
            raise
        finally:
            ended = monotonic_ns()
            self.slot.end(int(answer["status"][:3]), len(answer["body"]), ended)
        if self.context.access is not None:
            size = len(answer["body"])
            self.context.access.answered(
                method, path, protocol, environ, answer["status"], answer["headers"], size, ended - started
            )
        self.answered += 1
        if self.answered == self.quota:
            self.quota = self.context.on_quota(self.answered) or 0
        return [answer["body"]]

    def drain(self, hand_over=False, seconds=None):
        self.draining = True
        os.eventfd_write(self.wake, 1)

    def stop(self):
        self.drain()

    def add_reader(self, fd, callback):
        self.readers[fd] = callback
        self.poll.register(fd, select.POLLIN)

    def remove_reader(self, fd):
        del self.readers[fd]
        self.poll.unregister(fd)

    def descriptors(self):
        return {self.wake}

    def close(self):
        os.close(self.wake)


class ReferenceServer(WSGIServer):
    def __init__(self, worker):
        self.server_name, self.server_port = "localhost", 80
        self.RequestHandlerClass = Handler
        self.setup_environ()
        self.set_app(worker.app)


class Handler(WSGIRequestHandler):
    def log_message(self, *args):
        pass

    def address_string(self):
        return self.client_address[0] if self.client_address else ""
