"""Fetch the clients that Triton's users have, for the tests of the Open Inference Protocol, into build/triton-clients.

    python tools/fetch_triton_clients.py [FOLDER]

tritonclient goes into a virtual environment of its own: it needs an older protobuf than the service's tools, and its
stubs have the names of the service's own. perf-analyzer is one program, built for a C library of 2.38 or newer. Where
the machine's is older, as Debian 12's is, apt fetches those of Debian 13 into the folder and the program is started
with them; nothing is installed and nobody need be root. FOLDER/bin has `python` and `perf-analyzer`.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

FOLDER = Path(__file__).parent.parent / "build" / "triton-clients"
TRITON_CLIENT = "tritonclient[grpc]==2.73.0"
PERF_ANALYZER = (
    "perf-analyzer==2.60.0 --hash=sha256:23ef56b107ae9233e5cf09fbdf508dd9b936a52f1bae2f63f53c8117087b3f25\n"
)
PLATFORM = "manylinux_2_38_x86_64"
# What the program is linked with, and its libraries with.
LIBRARIES = ("libc6", "libgcc-s1", "libssl3t64", "libstdc++6", "libzstd1", "zlib1g")
LIBRARY_PATH = Path("usr/lib/x86_64-linux-gnu")
LOADER = "ld-linux-x86-64.so.2"
KEYS = "/usr/share/keyrings/debian-archive-keyring.gpg"


def make_environment(folder: Path) -> None:
    """Make the virtual environment with tritonclient."""
    print(f"fetching {TRITON_CLIENT}", flush=True)
    venv.create(folder, with_pip=True)
    subprocess.run([*pip(folder), "install", TRITON_CLIENT], check=True)


def pip(folder: Path) -> list[str | Path]:
    """Return the environment's own pip."""
    return [folder / "bin" / "python", "-m", "pip", "-q", "--disable-pip-version-check"]


def unpack_program(folder: Path) -> Path:
    """Fetch perf-analyzer and return its program. pip would not install it beside an older C library."""
    print("fetching perf-analyzer", flush=True)
    wanted, download = folder / "wanted.txt", folder / "download"
    wanted.write_text(PERF_ANALYZER)
    any_machine = ["--no-deps", "--only-binary", ":all:", "--platform", PLATFORM]
    from_there = ["--require-hashes", "--requirement", wanted, "--dest", download]
    subprocess.run([*pip(folder), "download", *any_machine, *from_there], check=True)
    (wheel,) = download.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        program = Path(archive.extract("perf_analyzer/bin/perf_analyzer", folder))
    program.chmod(0o755)
    return program


def works(*command: str | Path) -> bool:
    """Return whether a program starts with the libraries that it finds."""
    try:
        done = subprocess.run([*command, "--version"], capture_output=True, check=False)
    except OSError:  # made for another machine
        return False
    return done.returncode == 0


def debian_archive() -> str:
    """Return where apt is set up to find Debian's packages."""
    listed = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(SITE)"], capture_output=True, text=True, check=True
    )
    sites = [site for site in listed.stdout.split() if site.rstrip("/").endswith("/debian")]
    if not sites:
        sys.exit("perf-analyzer needs a C library of 2.38 or newer, and apt here knows no archive of Debian")
    return sites[0]


def fetch_libraries(folder: Path) -> Path:
    """Fetch Debian 13's libraries with apt, which checks their signatures, and return where they are."""
    print("fetching the C library of Debian 13 for perf-analyzer", flush=True)
    root, state = folder / "debian", folder / "apt"
    for made in (root, state / "lists" / "partial", state / "archives" / "partial", state / "debs"):
        made.mkdir(parents=True, exist_ok=True)
    (state / "sources.list").write_text(f"deb [signed-by={KEYS}] {debian_archive()} trixie main\n")
    (state / "status").touch()
    settings = {
        "Dir::Etc::sourcelist": state / "sources.list",
        "Dir::Etc::sourceparts": "-",
        "Dir::State::lists": state / "lists",
        "Dir::State::status": state / "status",
        "Dir::Cache": state,
        "APT::Architecture": "amd64",
        "APT::Architectures": "amd64",
        "APT::Sandbox::User": "",
        "Acquire::Languages": "none",
        "Acquire::Retries": "3",
    }
    apt = ["apt-get", "-qq", *(f"-o{name}={value}" for name, value in settings.items())]
    subprocess.run([*apt, "update"], check=True)
    subprocess.run([*apt, "download", *LIBRARIES], check=True, cwd=state / "debs")
    for package in (state / "debs").glob("*.deb"):
        subprocess.run(["dpkg-deb", "--extract", package, root], check=True)
    shutil.rmtree(state)
    return root / LIBRARY_PATH


def write_script(folder: Path, program: Path) -> None:
    """Write bin/perf-analyzer, which starts the program with libraries that suit it."""
    command: list[str | Path] = [program]
    if not works(*command):
        libraries = fetch_libraries(folder)
        command = [libraries / LOADER, "--library-path", libraries, program]
        if not works(*command):
            sys.exit("perf-analyzer does not start: it needs Linux on x86-64")
    script = folder / "bin" / "perf-analyzer"
    script.write_text(f'#!/bin/sh\nexec {shlex.join(map(os.fspath, command))} "$@"\n')
    script.chmod(0o755)


def main() -> None:
    """Make the folder."""
    folder = (Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER).resolve()
    make_environment(folder)
    write_script(folder, unpack_program(folder))
    (folder / "made").touch()


if __name__ == "__main__":
    main()
