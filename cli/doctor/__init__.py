"""`batchyard doctor`: probes read the machine, checks judge what they read, main prints it."""
