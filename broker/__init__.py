"""broker/: the one process that admits, queues, batches and leases."""
