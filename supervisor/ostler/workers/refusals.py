"""The log line of a refused request, which is the same in all worker classes."""

from ostler.logs.limiter import LimitedLog


def log_refused(limited: LimitedLog, client: str, status: int, rule: str, reason: str) -> None:
    """Log why a request was refused.

    Lines are limited for each rule, not for each client: there is no end of clients.

    Args:
        client: its address; empty for one of a Unix socket.
        rule: one of http1.errors.RULES.
        reason: what is wrong with the request, and what says so.
    """
    limited.write(
        "info", "request_refused", rule, client=client or "unix", status=status, rule=rule, reason=reason
    )
