"""The worker classes gevent and eventlet: each request is served in a greenlet."""
