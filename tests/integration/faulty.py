"""What the tests share in which parts of a yard are killed or stopped."""

from __future__ import annotations

from typing import Any

import numpy as np
from batchyard import BrokerLost, Client, DeadlineExceeded, Overloaded

MAX_BATCH = 8
# What a failure would take: times are only compared with these, because the machine may be busy.
HUNG_S = 5.0  # from here on a run is held to be hung (broker/leases.py)
CONNECT_TIMEOUT_S = 5.0  # of a client that says nothing else
PATIENCE_S = 30.0  # of calls that say nothing else, and of the tests
X = np.ones((1, 4), np.float32)


def slow_input(value: float = 1.0, rows: int = MAX_BATCH) -> np.ndarray[Any, Any]:
    return np.full((rows, 512), value, np.float32)


def works(client: Client) -> bool:
    """Whether the same client object gets answers again; a wrong answer is an error."""
    try:
        assert (client.infer("neg", X, timeout=5) == -1).all()
    except (BrokerLost, DeadlineExceeded, Overloaded):  # the workers are still starting, or loading
        return False
    return True
