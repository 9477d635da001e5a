#!/bin/sh
# Makes the Python stubs of proto/ into client/longshort/v1. Run it after every change of a .proto file;
# `make check` fails where what is committed differs from what this makes.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
out=${1:-client}
mkdir -p "$out"
"$python" -m grpc_tools.protoc -I proto --python_out="$out" --pyi_out="$out" --grpc_python_out="$out" \
  proto/longshort/v1/*.proto
