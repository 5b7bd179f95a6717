"""What several tests need: servers, clients, waiting with a deadline."""
