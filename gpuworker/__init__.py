"""gpuworker/: the processes that run models: a supervisor, and the child that owns the sessions."""
