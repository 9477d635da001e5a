"""Trying a model file in a process of its own first: a file from outside may end the process that loads it.

onnxruntime ends its process by a segmentation fault on some files (1.32: recurrent nodes in float16, at its full
optimisation), and a graph of a few bytes may ask for any amount of memory or time. A service that has sessions must
not find that out itself. Run as a program this is that process.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final

from longshort_service import model_file as model_files
from longshort_service.graph_check import ModelError
from longshort_service.signature_json import METADATA_KEY

TRIAL_S: Final = 120  # wall time of one try; a file of 2 GB takes some 10 s
REFUSED: Final = 3  # the program's exit code where it says on stdout why the file is not served
FULL, BASIC = "full", "basic"  # how far onnxruntime optimises the graph
# Address space of a try: what Python and onnxruntime take, and some copies of graph and weights.
_FREE_BYTES: Final = 6 * 2**30
_COPIES: Final = 6
_CRASHES: Final = frozenset(
    {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP}
)


def can_optimise(folder: Path, file: Path, *, trial_s: float = TRIAL_S) -> bool:
    """Return whether a model file loads and runs at onnxruntime's full optimisation; False: only at the basic one.

    A file that carries its signature is taken to be longshort's own and is not tried: it starts fast. Blocks for half a
    second or more otherwise. Raises ModelError where the file is refused, ends its process at both, or takes more than
    `trial_s`; OSError where it cannot be read.
    """
    if METADATA_KEY in model_files.look_at(file).metadata:
        return True
    ended = ""
    for level in (FULL, BASIC):
        ended = _try(folder, file, level, trial_s)
        if not ended:
            return level == FULL
    raise ModelError(f"{file}: it ends the process that loads it ({ended}): onnxruntime cannot run it")


def _try(folder: Path, file: Path, level: str, trial_s: float) -> str:
    """Try a file in a process of its own; return by which signal that crashed, "" where it did not."""
    # -P: nothing that lies in the working directory is imported.
    command = [sys.executable, "-P", "-m", __name__, str(folder), str(file), level]
    try:
        done = subprocess.run(  # noqa: S603  our own program; the paths are arguments, no shell reads them
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=trial_s, check=False
        )
    except subprocess.TimeoutExpired:
        raise ModelError(f"{file}: loading it and running it once takes longer than {trial_s:g} s") from None
    if done.returncode == 0:
        return ""
    if done.returncode == REFUSED:
        raise ModelError(done.stdout.decode(errors="replace"))
    if -done.returncode in _CRASHES:
        return signal.Signals(-done.returncode).name
    last_line = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
    raise ModelError(f"{file}: trying it in a process of its own ended with {done.returncode}: {last_line}")


def main(folder: Path, file: Path, level: str) -> int:
    """Load a file and run it once as the service would; return the exit code."""
    _limit_process(folder)
    # onnxruntime is loaded within the limits.
    from longshort_service.engine import Engine  # noqa: PLC0415
    from longshort_service.explain_file import can_explain, open_explain  # noqa: PLC0415
    from longshort_service.model_signature import resolve  # noqa: PLC0415

    try:
        resolved = resolve(folder, file)
        engine = Engine(
            file,
            provider="cpu",
            intra_op_num_threads=1,
            signature=resolved.signature,
            arrays=resolved.arrays,
            is_optimised=level == FULL,
        )
        engine.check_results()
        if can_explain(file):
            with contextlib.suppress(ModelError):  # a caller who asks for explanations is told then
                open_explain(file, engine)
    except (ModelError, OSError) as error:
        text = str(error)
    except MemoryError:
        text = f"{file}: there is no memory for what it asks for"
    except Exception as error:  # noqa: BLE001  whatever its bytes have led to
        text = f"{file}: it is damaged: {error!r}"
    else:
        return 0
    sys.stdout.buffer.write(text.encode(errors="replace"))
    return REFUSED


def _limit_process(folder: Path) -> None:
    """Bound this process's memory and time, and leave no core dump, where the system can."""
    with contextlib.suppress(OSError):  # the first to go where the machine runs out of memory
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource  # noqa: PLC0415  not on every system

        num_bytes = sum(entry.stat().st_size for entry in os.scandir(folder) if entry.is_file())
        for limit, most in (
            (resource.RLIMIT_CORE, 0),
            (resource.RLIMIT_CPU, TRIAL_S),
            (resource.RLIMIT_AS, _FREE_BYTES + _COPIES * min(num_bytes, model_files.MAX_MODEL_BYTES)),
        ):
            hard = resource.getrlimit(limit)[1]
            resource.setrlimit(limit, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]))
