"""Campaigns: real processes are killed, stopped, and overloaded, and the yard is held to its promises."""
