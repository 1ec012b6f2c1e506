"""transport/: the contract that every process speaks: messages, tensors, memory, endpoints."""
