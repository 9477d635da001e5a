"""What longshort is measured against, each a small program of its own: `python -m bench.rivals.NAME [MODEL]`."""
