"""The shell around the fleet: performs actions, turns the outside into events, decides nothing."""
