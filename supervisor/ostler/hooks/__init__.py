"""gunicorn's server hooks: functions of the configuration file, called in the fork server and in workers."""
