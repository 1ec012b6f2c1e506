"""What we measure batchyard itself with. Not in the wheel: `python3 run measure`, from a checkout."""
