"""The CUDA provider: the same answers as the CPU's within the stated tolerance. Runs where there is a device."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest
from longshort_service.engine import Engine

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        "CUDAExecutionProvider" not in ort.get_available_providers(),
        reason="no CUDA device with onnxruntime-gpu here",
    ),
]

# docs/design/0001-contract.md: answers elsewhere than on one kind of CPU agree within 1e-5 relative.
RELATIVE_TOLERANCE = 1e-5
ABSOLUTE_TOLERANCE = 1e-6


@pytest.mark.parametrize("name", ["metro", "deep", "wide"])
def test_cuda_answers_agree_with_cpu_answers_over_200_carried_steps(repository, name):
    path = repository / name / "1" / "model.onnx"
    engines = [Engine(path, provider=provider, intra_op_num_threads=1) for provider in ("cpu", "cuda")]
    random = np.random.default_rng(0)
    width = len(engines[0].signature.features)
    states = [engine.initial_states(16) for engine in engines]
    for _ in range(200):
        values = random.normal(size=(16, 1, width)).astype(np.float32)
        answers = []
        for k, engine in enumerate(engines):
            answer, states[k] = engine.run(values, None, states[k])
            answers.append(answer)
        np.testing.assert_allclose(answers[1], answers[0], rtol=RELATIVE_TOLERANCE, atol=ABSOLUTE_TOLERANCE)
