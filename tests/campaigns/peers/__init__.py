"""Other servers beside a yard: the same models, loads and rates, in turns."""
