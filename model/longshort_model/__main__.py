"""`python -m longshort_model` is `longshort train`."""

from longshort_model.command import train

train(prog_name="python -m longshort_model")
