"""Data sets, a search, and training: `python3 run demo --train`, and where the demo's model comes from."""
