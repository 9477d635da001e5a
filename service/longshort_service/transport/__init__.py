"""gRPC's server side on its completion queue, in one thread: the loop that waits in it, a server, its calls."""
