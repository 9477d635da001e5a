"""What the naive services have in common: a message of protobuf in, one run of onnxruntime, a message out.

They take the messages that longshort takes, so that one load drives all, and ignore step numbers.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

import numpy as np
from longshort.v1 import sequence_pb2, sequence_pb2_grpc, types_pb2

from bench.rivals.model import Follower

if TYPE_CHECKING:
    import grpc
    import onnxruntime as ort


class Sequence:
    """One stream's sequence, remembered in a local variable of its handler."""

    def __init__(self, engine: ort.InferenceSession) -> None:
        self._follower = Follower(engine)
        self._step = 0

    def answer(self, request: sequence_pb2.StreamRequest) -> sequence_pb2.StreamResponse:
        """Return what one message is answered with."""
        if request.HasField("open"):
            return sequence_pb2.StreamResponse(opened=sequence_pb2.Opened(session=request.open.session))
        values = np.array(request.values.values, np.float32).reshape(1, -1, 1)  # [1, time, 1] f32
        predictions = self._follower.step(values)[0]  # [time, outputs] f32
        self._step += len(predictions)
        if request.values.answers == types_pb2.ANSWERS_LAST:
            predictions = predictions[-1]
        answer = sequence_pb2.Answer(values=predictions.ravel().tolist(), step=self._step)
        return sequence_pb2.StreamResponse(answer=answer)


def register(
    service: sequence_pb2_grpc.SequenceServiceServicer, server: grpc.Server | grpc.aio.Server
) -> None:
    """Have a server take the service's calls."""
    sequence_pb2_grpc.add_SequenceServiceServicer_to_server(service, server)  # type: ignore[no-untyped-call]  # generated


def say_ready(port: int) -> None:
    """Tell whoever started the program where it listens."""
    print(json.dumps({"grpc": f"127.0.0.1:{port}"}), file=sys.stderr, flush=True)
