"""Watching the files of an app that is being written (`reload`)."""
