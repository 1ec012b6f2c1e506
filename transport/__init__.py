"""transport/: the contract that every process speaks: messages, tensors, segments, arenas, endpoints, errors."""
