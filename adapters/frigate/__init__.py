"""Frigate's ZMQ detector (its `zmq_ipc` plugin), served by a yard. See docs/frigate.md."""
