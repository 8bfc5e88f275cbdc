"""Ray: connection, worker pools, job server."""
