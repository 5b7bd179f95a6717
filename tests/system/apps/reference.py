"""A complete worker class for `ostler.workers`: wsgiref's HTTP on our listeners, one connection at a time."""

import os
import select
from time import monotonic_ns
from urllib.parse import quote
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from ostler.http1.line import parse_line
from ostler.scoreboard import layout
from ostler.workers.base import BaseWorker
from ostler.workers.lane import Lane


class ReferenceWorker(BaseWorker):
    @classmethod
    def create(cls, context):
        return cls(context)

    def __init__(self, context):
        self.context = context
        self.lane = Lane(context.cell, 0)
        self.readers = {}
        self.answered = 0
        self.server = Server(self)
        self.poll = select.poll()
        # A signal handler's wish must end a wait that was just about to begin.
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
            self.context.cell.header[layout.HEARTBEAT] = monotonic_ns()

    def accept(self, listener):
        try:
            connection, address = listener.accept()
        except BlockingIOError:
            return  # a sibling was quicker
        connection.settimeout(5)
        self.lane.words[layout.OPENED] += 1
        self.server.finish_request(connection, address)
        connection.close()
        self.lane.words[layout.CLOSED] += 1
        if self.context.access is not None:
            self.context.access.flush()

    def app(self, environ, start_response):
        """The app, with what the scoreboard and the access log are told."""
        words = self.lane.words
        method, path, protocol = (environ[key] for key in ("REQUEST_METHOD", "PATH_INFO", "SERVER_PROTOCOL"))
        self.lane.show(parse_line(f"{method} {quote(path)} {protocol}".encode()))
        told = []

        def start(status, headers, exc_info=None):
            told[:] = status, headers
            return start_response(status, headers, exc_info)

        words[layout.STARTED] = started = monotonic_ns()
        try:
            body = b"".join(self.context.app(environ, start))
        except Exception:
            told[:] = "500 Internal Server Error", []
            raise
        finally:
            took = monotonic_ns() - started
            words[layout.STARTED] = 0
            words[layout.HISTOGRAM + layout.bucket_of(took)] += 1
            words[layout.STATUS_CLASSES + int(told[0][0])] += 1
        words[layout.BYTES_SENT] += len(body)
        if self.context.access is not None:
            self.context.access.answered(method, path, protocol, environ, *told, len(body), took)
        self.answered += 1
        if self.answered == self.context.quota:
            self.context.on_quota(self.answered)
        return [body]

    def drain(self, hand_over=False, seconds=None):
        self.draining = True
        os.eventfd_write(self.wake, 1)

    stop = drain

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


class Server(WSGIServer):
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
