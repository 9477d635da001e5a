"""Steps public models with their makers' own code: `python makers.py MAKER FOLDER FILE`, FILE an .npz.

It holds `audio` `[streams, samples] f32`; what comes back in its place are `values` `[streams, steps, ...]`, what the
maker's code puts into the model (beside what it keeps itself), and `answers` `[streams, steps, ...]`, what it says of
them. FOLDER is where tools/fetch_public_models.py has unpacked the package. A process of its own each: what makers set
up for themselves (threads, paths, warnings) stays with them.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Result = tuple[Any, Any]


def silero(audio: NDArray[np.float32], folder: Path, *, file: str, rate: int = 16000) -> Result:
    """Silero's OnnxWrapper, which keeps the context before each chunk."""
    import torch
    from silero_vad.utils_vad import OnnxWrapper

    chunks = in_chunks(audio, 512 if rate == 16000 else 256)
    model = OnnxWrapper(str(folder / "silero_vad" / "data" / file), force_onnx_cpu=True)
    answers = []
    for stream in chunks:
        model.reset_states()
        answers.append([model(torch.from_numpy(chunk), rate).numpy()[0] for chunk in stream])
    return chunks, answers


def silero_sequence(audio: NDArray[np.float32], folder: Path) -> Result:
    """Silero's front end for many chunks in one run: its frames hold the context already."""
    from silero_vad.sequence_vad import SileroVADSequence, frame_blocks

    model = SileroVADSequence(str(folder / "silero_vad" / "data" / "silero_vad_16k_sequence.onnx"))
    values = [np.concatenate(list(frame_blocks(stream, 512, 64, 512))) for stream in audio]
    return values, [model.audio_forward(stream) for stream in audio]


def whisper_stepping(audio: NDArray[np.float32], folder: Path) -> Result:
    """faster-whisper up to 0.10: the caller carries the states from chunk to chunk."""
    chunks = in_chunks(audio, 1536)
    model = whisper_vad(folder).SileroVADModel(str(folder / "faster_whisper" / "assets" / "silero_vad.onnx"))
    answers = []
    for stream in chunks:
        state, said = model.get_initial_state(1), []
        for chunk in stream:
            probability, state = model(chunk, state, 16000)
            said.append(probability[0])
        answers.append(said)
    return chunks, answers


def whisper_at_once(audio: NDArray[np.float32], folder: Path) -> Result:
    """faster-whisper from 1.1: all chunks in one run, each behind the end of the one before."""
    vad = whisper_vad(folder)
    model = vad.SileroVADModel(str(folder / "faster_whisper" / "assets" / "silero_vad_v6.onnx"))
    seen: list[NDArray[np.float32]] = []
    session = model.session
    model.session = types.SimpleNamespace(
        run=lambda names, feeds: (seen.append(feeds["input"]), session.run(names, feeds))[1]
    )
    answers = [model(stream.copy()) for stream in audio]
    return seen, answers


def flashvad(audio: NDArray[np.float32], folder: Path) -> Result:
    """FlashVAD's stream: its own features, and the probability that it makes of the model's logit."""
    del folder
    from flashvad.runtime import OnnxStreamingVadModel

    model = OnnxStreamingVadModel.load_bundled()
    values = [model.new_stream().features.push(stream) for stream in audio]
    return values, [model.new_stream().push(stream)[0] for stream in audio]


def akiki(audio: NDArray[np.float32], folder: Path) -> Result:
    """Akiki's detector on its ONNX engine."""
    del folder
    from akiki import VAD

    answers = []
    for stream in audio:
        with VAD(engine="onnx") as detector:
            answers.append([frame.probability for frame in detector.push(stream)])
    return in_chunks(audio, 256), np.float32(answers)  # which they were


def riann(audio: NDArray[np.float32], folder: Path) -> Result:
    """RIANN's steps: acceleration, rates of turn and the time since the last ones; the attitude as a quaternion.

    What moves the sensor is the sound: an earth that shakes.
    """
    from riann.riann import RIANN

    model = RIANN(str(folder / "riann" / "riann.onnx"))
    rate = 100.0
    model.set_sampling_rate(rate)
    motion = in_chunks(audio, 1536 // 8)[:, :, :6] * 10 + np.float32([0, 0, 9.81, 0, 0, 0])
    answers = []
    for stream in motion:
        model.reset_state()
        answers.append([model.predict_step(sample[:3], sample[3:]).copy() for sample in stream])
    times = np.full((*motion.shape[:2], 1), 1 / rate, np.float32)
    return np.concatenate([motion, times], axis=2), answers


def in_chunks(audio: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """Return `[streams, chunks, size]`."""
    return audio.reshape(len(audio), -1, size)


def whisper_vad(folder: Path) -> Any:
    """Return faster_whisper's module vad without the package around it, which asks for much that this one does not."""
    package = types.ModuleType("faster_whisper")
    package.__path__ = []
    utils = types.ModuleType("faster_whisper.utils")
    utils.get_assets_path = lambda: str(folder / "faster_whisper" / "assets")  # type: ignore[attr-defined]
    sys.modules |= {"faster_whisper": package, "faster_whisper.utils": utils}
    spec = importlib.util.spec_from_file_location("faster_whisper.vad", folder / "faster_whisper" / "vad.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["faster_whisper.vad"] = module
    spec.loader.exec_module(module)
    return module


MAKERS: dict[str, Callable[..., Result]] = {
    "silero": lambda audio, folder: silero(audio, folder, file="silero_vad.onnx"),
    "silero-8k": lambda audio, folder: silero(audio, folder, file="silero_vad.onnx", rate=8000),
    "silero-opset-15": lambda audio, folder: silero(audio, folder, file="silero_vad_16k_op15.onnx"),
    "silero-without-if": lambda audio, folder: silero(audio, folder, file="silero_vad_op18_ifless.onnx"),
    "silero-sequence": silero_sequence,
    "whisper-stepping": whisper_stepping,
    "whisper-at-once": whisper_at_once,
    "flashvad": flashvad,
    "akiki": akiki,
    "riann": riann,
}


def main(maker: str, folder: Path, file: Path) -> None:
    """Answer one file."""
    sys.path.insert(0, str(folder))
    with np.load(file) as given:
        audio = given["audio"]
    values, answers = MAKERS[maker](audio, folder)
    np.savez(file, values=np.asarray(values), answers=np.asarray(answers))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
