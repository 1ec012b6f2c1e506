"""`batchyard demo`: a yard with a real model, its load, and the results; a file for each stage."""
