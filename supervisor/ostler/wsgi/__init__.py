"""WSGI (PEP 3333): environ, and the one caller of the app that all worker classes share."""
