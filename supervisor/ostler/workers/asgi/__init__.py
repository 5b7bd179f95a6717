"""The worker class `asgi`: uvicorn as a library, on our listeners, inside our life cycle."""
