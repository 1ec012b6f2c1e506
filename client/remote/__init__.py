"""client/remote/: the same verbs for a yard behind HTTP or gRPC: a gateway's address, or a fleet's.

Speaks the Open Inference Protocol as our gateway does. There is no shared memory; every tensor is copied into
a message. Loaded only for an address of these schemes, and needs what the extra `fleet` brings.
"""

from __future__ import annotations

HTTP, GRPC = ("http", "https"), ("grpc", "grpcs")


def is_remote(url: str) -> bool:
    """Whether this URL is a gateway's, and not a broker's."""
    return isinstance(url, str) and url.partition("://")[0] in (*HTTP, *GRPC)
