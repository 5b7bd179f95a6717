"""The worker class `meinheld`."""
