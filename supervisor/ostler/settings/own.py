"""Settings that gunicorn does not have.

Its users' files may call helpers so, and its flags, cut short, must stay as clear beside them as they were.
"""

OWN = frozenset(
    """
    autoscale_cooldown autoscale_queue_wait autoscale_utilisation boot_parallelism boot_timeout body_min_rate
    body_timeout buffer_request buffer_response buffer_response_file canary_time control_bind
    control_token_file header_timeout limit_connections_per_address limit_request_body log_format max_age
    max_age_jitter max_memory max_surge probation queue_timeout refork_after rollback_crashes
    rollback_error_rate socket_mode socket_owner ssl_minimum_version stream_request timeout_grace
    timeout_soft warmup_request
    """.split()
)
