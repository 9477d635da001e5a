"""`python -m longshort_service` is `longshort`."""

from longshort_service.cli import main

main(prog_name="longshort")
