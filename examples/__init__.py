"""examples/: a small model with real data that `batchyard demo` serves, and the script that trained it."""
