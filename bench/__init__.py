"""bench/: load generators and comparisons."""
