"""cli/: the batchyard command."""
