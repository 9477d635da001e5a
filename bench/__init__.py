"""Measures longshort beside its rivals on this machine: `python -m bench`, or `make bench`. See docs/benchmarks.md."""
