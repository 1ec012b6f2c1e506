"""client/: a guest in the user's process: Client, AsyncClient and the embedded local yard."""
