"""`batchyard fleet`: Envoy's configuration for many nodes, Envoy itself for a try, a look at the nodes."""
