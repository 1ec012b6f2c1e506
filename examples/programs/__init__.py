"""Programs to start from (docs/examples.md). Not in the wheel."""
