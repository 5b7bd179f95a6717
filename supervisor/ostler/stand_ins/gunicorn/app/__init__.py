"""gunicorn's applications, which run a server from Python."""
