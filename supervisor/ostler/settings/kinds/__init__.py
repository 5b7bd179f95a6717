"""Kinds of values: each parses what a user wrote (text or a Python object) into the typed value.

Text comes from the command line and the environment, Python objects from a configuration file. A parser
raises ValueError whose text completes the sentence "SETTING: ...", e.g. "expected a whole number, got 'x'".

There is one module per subject. A kind is a constant that rows of the settings table use: `numbers.SIZE`.
"""
