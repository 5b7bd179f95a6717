"""WSGI (PEP 3333): environ, request bodies, and the call of the app that all worker classes share."""
