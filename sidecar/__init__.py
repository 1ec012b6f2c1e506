"""The sidecar: what a broker counts and what sensors show, as a page that Prometheus scrapes."""
