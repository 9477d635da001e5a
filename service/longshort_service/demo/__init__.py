"""The demo: a service, 29 clients, scores and latencies. All figures come over the wire."""
