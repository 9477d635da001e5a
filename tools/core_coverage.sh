#!/bin/sh
# Holds the core to the last branch by its own tests alone: fails where a line or branch of it is not run by them.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
set -- -q -p no:cacheprovider --cov-branch --cov-report=term-missing --cov-fail-under=100
core="protocol durability session sessions sharded_dict row_index served_model arena host_states columns"
core="$core batching singles ports signature general_run lane few_steps small_run handles frames frame_answer values record snapshot waiters outage"
core="$core behind beginning forecast"
# Stores that ask another program for their sessions have tests of their own.
for module in $core signature_json frame_work stores.base stores.memory; do
    set -- "$@" "--cov=longshort_service.$module"
done
for test in $core frames_again store_contract store_memory; do
    set -- "$@" "tests/test_$test.py"
done
exec "$python" -m pytest "$@"
