"""Object storage on the loopback address: ours against boto3's own transfers, in turns.

    .venv/bin/python benchmarks/obs_transfer.py [SCRATCH] [--mebibytes 1024] [--rounds 3]

The server is the tests' own double in a process of its own; it checks every signature and
digest. Each transfer runs in a fresh process, which measures itself without its imports. Ours
down takes the sha256, keeps a journal and ends with fsync; ours up takes sha256 and MD5. boto3's
`download_file` and `upload_file` do none of this. SCRATCH, by default a new directory under the
system's temporary one, needs twice the size free. Prints one JSON object; megabytes are 10**6
bytes, and memory is the peak of the client's process.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
KEYS = {"access_key_id": "AKIDDOUBLE", "secret_access_key": "double/secret+key"}  # the double's
BUCKET = "bucket"


def transfer(who: str, way: str, endpoint: str, path: Path) -> float:
    """Seconds of one transfer between `path` and the object that bears the client's name."""
    from glm3sdk.adapters.storage.obs import ObsBlobStore
    from glm3sdk.adapters.storage.obs_client import ObsConnection
    from glm3sdk.adapters.storage.transfer import download

    uri = f"obs://{BUCKET}/{who}"
    connection = ObsConnection(endpoint=endpoint, **KEYS)
    client, store = connection.client(uri), ObsBlobStore(connection)
    began = time.perf_counter()
    if way == "up":
        if who == "ours":
            store.write(uri, path)
        else:
            client.upload_file(str(path), BUCKET, who)
    elif who == "ours":
        blob = store.stat(uri)
        assert blob is not None
        download(store, blob, path)
    else:
        client.download_file(BUCKET, who, str(path))
    return time.perf_counter() - began


def peak_mb() -> float:
    """The most memory that this process had since its program was loaded."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise AssertionError("no VmHWM")


def in_its_own_process(*words: object) -> dict[str, float]:
    command = [sys.executable, __file__, "--one", *map(str, words)]
    run = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(run.stdout))


def write_random(path: Path, mebibytes: int) -> str:
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for number in range(mebibytes):
            block = hashlib.shake_128(str(number).encode()).digest(1 << 10) * (1 << 10)
            digest.update(block)
            file.write(block)
    return digest.hexdigest()


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def compare(scratch: Path, mebibytes: int, rounds: int) -> dict[str, Any]:
    size = mebibytes << 20
    free = shutil.disk_usage(scratch).free
    if free < 2 * size + (1 << 28):
        raise SystemExit(f"{scratch} has {free} bytes free; pass a directory with twice the size")
    source, target = scratch / "source.bin", scratch / "target.bin"
    digest = write_random(source, mebibytes)
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY / "tests")}
    server = subprocess.Popen(
        [sys.executable, "-m", "servers.s3_double"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    measured: dict[tuple[str, str], list[dict[str, float]]] = {}
    try:
        assert server.stdout is not None
        endpoint = server.stdout.readline().strip()
        for _ in range(rounds):
            for way in ("up", "down"):
                for who in ("ours", "boto3"):
                    path = source if way == "up" else target
                    run = in_its_own_process(who, way, endpoint, path)
                    measured.setdefault((way, who), []).append(run)
                    if way == "down":
                        assert sha256(target) == digest
                        target.unlink()
    finally:
        server.communicate("")
        source.unlink()
    report: dict[str, Any] = {"mebibytes": mebibytes, "rounds": rounds}
    for (way, who), runs in measured.items():
        rates = sorted(size / 1e6 / run["seconds"] for run in runs)
        report[f"{who} {way}"] = {
            "MB/s": [round(rate) for rate in rates],
            "median MB/s": round(statistics.median(rates)),
            "peak MB": round(max(run["peak_mb"] for run in runs)),
        }
    return report


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("scratch", nargs="?", type=Path)
    parser.add_argument("--mebibytes", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        who, way, endpoint, path = given.one
        seconds = transfer(who, way, endpoint, Path(path))
        print(json.dumps({"seconds": seconds, "peak_mb": peak_mb()}))
        return
    with tempfile.TemporaryDirectory(dir=given.scratch) as scratch:
        print(json.dumps(compare(Path(scratch), given.mebibytes, given.rounds), indent=2))


if __name__ == "__main__":
    main()
