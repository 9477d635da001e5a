"""Many sessions on one frame stream: what the sync and the async `Gateway` share. No I/O but in `blocking`."""
