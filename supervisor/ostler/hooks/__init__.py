"""gunicorn's server hooks: the configuration file's functions, called in the fork server and in workers."""
