#!/bin/sh
# Makes the Python stubs of proto/: longshort's own into client/longshort/v1, those of the Open Inference Protocol into
# service/longshort_service/inference. Given a folder, into that one, as longshort/v1 and inference. Run it after every
# change of a .proto file; `make check` fails where what is committed differs from what this makes.
set -eu
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
out=${1:-client}
inference_out=${1:-service/longshort_service}
mkdir -p "$out" "$inference_out"
"$python" -m grpc_tools.protoc -I proto --python_out="$out" --pyi_out="$out" --grpc_python_out="$out" \
  proto/longshort/v1/*.proto
# Messages only: its handlers are registered by name. Its package's name is Triton's, so that it stays off the client.
"$python" -m grpc_tools.protoc -I proto --python_out="$inference_out" --pyi_out="$inference_out" \
  proto/inference/inference.proto
