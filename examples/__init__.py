"""The model and the scans of `batchyard demo`, and a configuration; the folders are for a checkout alone."""
