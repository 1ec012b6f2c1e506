"""gateway/: REST jobs and the Open Inference Protocol over HTTP and gRPC; a plain user of `AsyncClient`."""
