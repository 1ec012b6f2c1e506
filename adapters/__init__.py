"""Other programs' own protocols, each in a process of its own, as a user of `AsyncClient`."""
