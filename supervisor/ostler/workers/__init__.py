"""Worker processes: booting, and the engines that serve."""
