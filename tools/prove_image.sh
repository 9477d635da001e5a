#!/usr/bin/env bash
# Builds the serving image on a stand-in for its base and runs it as docker-compose.yml would, with Podman:
# becomes healthy by its HEALTHCHECK, answers, is not root, cannot write its root, brings no torch, leaves on
# SIGTERM with 0, fills a new volume with the shipped models, keeps its sessions over a restart.
#
#   apt-get install --no-install-recommends debootstrap podman runc     (Debian; root or equal rights)
#   tools/prove_image.sh [--train]           --train also builds the train image, trains, and serves the result;
#                                            TORCH="torch==2.13.0" picks a version
#
# BASE names a base image to use; without it one is made by debootstrap, or from ROOTFS, a folder that debootstrap made
# earlier. Packages come from where pip (of PYTHON) and apt are set up to find them, outside of the build, which runs
# without a network. Skips with 77 where no container can be
# run; with LONGSHORT_REQUIRE_ALL=1 that is a failure. Everything it makes lies in one temporary folder.
set -euo pipefail

cd "$(dirname "$0")/.."
work=$(mktemp -d "${TMPDIR:-/tmp}/longshort-image.XXXXXX")
with_train=${1:-}
python=$(command -v "${PYTHON:-python3}")
python=$(cd "$(dirname "$python")" && pwd)/$(basename "$python")

engine() {
    podman --root "$work/storage" --runroot "$work/run" --storage-driver "$driver" --runtime runc \
        --cgroup-manager cgroupfs --events-backend file "$@"
}

clean_up() {
    if [ -n "${driver:-}" ]; then engine rm --all --force --time 0 >/dev/null 2>&1 || true; fi
    mountpoint -q "$work/storage/overlay" && umount "$work/storage/overlay"
    rm -rf --one-file-system "$work"
}
trap clean_up EXIT

skip() {
    echo "SKIPPED: $1"
    if [ "${LONGSHORT_REQUIRE_ALL:-0}" = 1 ]; then exit 1; else exit 77; fi
}

fail() {
    echo "FAILED: $1" >&2
    engine logs service >&2 2>/dev/null || true
    exit 1
}

proved() { echo "proved: $1 (${SECONDS} s)"; }

for tool in podman runc debootstrap; do
    command -v "$tool" >/dev/null || skip "$tool is not installed"
done

# Asking for no more files and processes than this needs no right to raise limits, which sandboxes lack.
export CONTAINERS_CONF="$work/containers.conf"
printf '[containers]\ndefault_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]\n' > "$CONTAINERS_CONF"

# --- the base -------------------------------------------------------------------------------------------------
driver=overlay
base=${BASE:-localhost/standin:1}
if [ -z "${BASE:-}" ]; then
    if [ -z "${ROOTFS:-}" ]; then
        debootstrap --variant=minbase --include=ca-certificates,python3,python3-venv,python3-pip bookworm \
            "$work/rootfs" > "$work/debootstrap.log" 2>&1 || skip "no stand-in: $(tail -1 "$work/debootstrap.log")"
        rm -rf "$work"/rootfs/var/cache/apt/archives/*.deb "$work"/rootfs/var/lib/apt/lists/*
    fi
    for driver in overlay vfs; do
        if tar -C "${ROOTFS:-$work/rootfs}" -c . | engine import - "$base" > "$work/import.log" 2>&1; then break; fi
    done
    rm -rf "$work/rootfs"
fi
engine run --rm --network=none "$base" python3 --version > "$work/first.log" 2>&1 \
    || skip "no container runs here: $(tail -1 "$work/first.log")"
echo "stand-in base with $(cat "$work/first.log"), storage driver $driver (${SECONDS} s)"

# --- build ----------------------------------------------------------------------------------------------------
mkdir "$work/context" "$work/wheels"
git ls-files -z --cached --others --exclude-standard -- Dockerfile .dockerignore pyproject.toml README.md LICENSE client model service \
    | xargs -0 tar -c | tar -x -C "$work/context"

fetch_wheels() { # fetch_wheels REQUIREMENT...: what the build needs, but not what it is to build itself
    (cd "$work/context" && "$python" -m pip wheel -w "$work/wheels" "setuptools>=77" ./client "$@") \
        > "$work/wheels.log" 2>&1 || { tail -5 "$work/wheels.log"; fail "the packages could not be had"; }
    rm -f "$work"/wheels/longshort-*.whl "$work"/wheels/longshort_server-*.whl
    find "$work/context" \( -name build -o -name '*.egg-info' \) -prune -exec rm -rf {} +
}

build() { # build TARGET IMAGE
    engine build -q --format docker --layers=false --network=none --target "$1" -t "$2" \
        --build-arg "BASE=$base" --build-arg PIP_NO_INDEX=1 --build-arg PIP_FIND_LINKS=/wheels \
        -v "$work/wheels:/wheels:ro" "$work/context" > "$work/build.log" 2>&1 || { tail -30 "$work/build.log"; fail "build $1"; }
    proved "target $1 builds: $(engine image inspect --format '{{.Size}}' "$2" | awk '{printf "%.0f MB", $1 / 1e6}')"
}

# redis wants async-timeout on a Python before 3.11.3, which that of the stand-in may be where this one is not.
fetch_wheels ".[redis]" "async-timeout>=4.0.3"
build serve longshort
echo "of these the base $(engine image inspect --format '{{.Size}}' "$base" | awk '{printf "%.0f MB", $1 / 1e6}')"

# --- run ------------------------------------------------------------------------------------------------------
serve() {
    engine run -d --name service --log-driver k8s-file --network=none --read-only --read-only-tmpfs=false --cap-drop=all \
        --security-opt=no-new-privileges --tmpfs /tmp --volume models:/models --volume sessions:/sessions longshort > "$work/start.log" 2>&1 \
        || fail "$(cat "$work/start.log")" # without systemd Podman says here that nobody asks for health by itself
    for _ in $(seq 100); do
        if engine healthcheck run service > "$work/health.log" 2>&1; then return; fi
        [ "$(engine inspect --format '{{.State.Running}}' service)" = true ] || fail "the service has ended"
        sleep 0.3
    done
    fail "never healthy: $(cat "$work/health.log")"
}

stop() {
    engine stop --time 30 service > "$work/stop.log" 2>&1 || fail "$(cat "$work/stop.log")"
    engine logs service 2>&1 | grep -q '"message": "stopped"' || fail "it did not drain to the end"
    code=$(engine inspect --format '{{.State.ExitCode}}' service)
    [ "$code" = 0 ] || fail "SIGTERM: exit code $code"
    engine rm service > /dev/null 2>&1
}

inside() { engine exec -i service "$@"; }

serve
proved "HEALTHCHECK by the gRPC health protocol says healthy"
[ "$(inside id -u)" = 10001 ] || fail "runs as $(inside id -u)"
[ "$(engine image inspect --format '{{.User}}' longshort)" = 10001:10001 ] || fail "the image's user is no number"
proved "the user is number 10001"
inside cat /proc/mounts > "$work/mounts.txt"
awk '$2 == "/" && $4 ~ /(^|,)ro(,|$)/ { found = 1 } END { exit !found }' "$work/mounts.txt" || fail "the root can be written"
proved "the root is read-only"
[ "$(inside python -c 'import importlib.util as u; print(u.find_spec("torch"))')" = None ] || fail "torch is in the image"
proved "no torch"
inside python -c 'import redis, hiredis' || fail "sessions could not be kept in Redis"
proved "the client of Redis and Valkey is in it"
inside ls /models > "$work/models.txt"
grep -qx metro "$work/models.txt" || fail "the new volume lacks the shipped models: $(cat "$work/models.txt")"
proved "a new volume begins with the shipped models"
printf '1195\n776\n581\n' | inside longshort stream --model metro --session proof > "$work/answers.txt" \
    || fail "longshort stream"
[ "$(grep -c . "$work/answers.txt")" -ge 3 ] || fail "answers: $(cat "$work/answers.txt")"
proved "it answers: $(tail -1 "$work/answers.txt")"
scrape='import urllib.request as u; print(u.urlopen("http://127.0.0.1:9464/metrics").read().decode())'
inside python -c "$scrape" > "$work/metrics.txt"
grep -q '^longshort_steps_total{model="metro",version="1"} 3' "$work/metrics.txt" || fail "/metrics lacks the steps"
proved "/metrics has the three steps"
engine exec -d service sh -c '(echo 1195; sleep 60) | longshort stream --model metro --session open' > /dev/null
for _ in $(seq 50); do
    inside python -c "$scrape" > "$work/metrics.txt"
    if grep -q '^longshort_streams 1' "$work/metrics.txt"; then break; fi
    sleep 0.2
done
grep -q '^longshort_streams 1' "$work/metrics.txt" || fail "no stream is open"
stop
proved "SIGTERM with a stream open: exit 0"
serve
inside longshort sessions get proof --json > "$work/session.json"
grep -q '"step": 3' "$work/session.json" || fail "the session has not outlived its container: $(cat "$work/session.json")"
stop
proved "the session goes on in the next container"

if [ "$with_train" = --train ]; then
    fetch_wheels "${TORCH:-torch}" ".[train]"
    build train longshort-train
    engine run --rm --network=none --read-only --read-only-tmpfs=false --cap-drop=all \
        --security-opt=no-new-privileges --tmpfs /tmp --volume models:/models longshort-train > "$work/train.log" 2>&1 \
        || { tail -20 "$work/train.log"; fail "training"; }
    serve
    inside ls /models/metro/2/model.onnx > /dev/null || fail "no version 2"
    inside longshort describe /models/metro | grep -q 2 || fail "version 2 is not described"
    stop
    proved "the train image trains version 2 into the volume, and the service serves it"
fi
echo "All proved in ${SECONDS} s."
