"""Bulk work offline: rows mapped through each node's own yard. Not in the wheel."""
