"""The campaigns, in the order in which they run. A new one is a file with a CAMPAIGN, and a line here."""

from __future__ import annotations

from . import (
    batching,
    broker_kills,
    cancels,
    client_kills,
    fleet,
    hour,
    overload,
    patience,
    soak,
    swaps,
    worker_kills,
)
from .campaign import Campaign

CAMPAIGNS: dict[str, Campaign] = {
    module.CAMPAIGN.name: module.CAMPAIGN
    for module in (
        worker_kills,
        client_kills,
        broker_kills,
        overload,
        batching,
        cancels,
        swaps,
        patience,
        fleet,
        hour,
        soak,
    )
}
