"""NVIDIA's perf_analyzer beside our own load generator, on the same server and the same products.

Its binary is inside the wheel tritonclient 2.51.0 for manylinux1 (later ones carry none). The wheel is fetched once
with pip, the binary taken out of it; the two libraries that it misses lie in the server's environment under longer
names and are linked beside it. Nothing of the wheel is imported.
"""

from __future__ import annotations

import base64
import csv
import json
import os
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.serving.subjects import ROOT
from catalogue.product import Product
from serving.environment import server_environment

WHEEL = "tritonclient==2.51.0"
PLATFORM = "manylinux1_x86_64"
MEMBER = "tritonclient-2.51.0.data/data/bin/perf_analyzer"
LIBRARIES = {"libb64.so.0d": "libb64-*.so.0d", "libcudart.so.12": "libcudart-*.so.12*"}
FOLDER = ROOT / "runs" / "benchmarks" / "perf_analyzer"


class PerfAnalyzerError(RuntimeError):
    """perf_analyzer cannot be had or failed; the message holds what it said."""


def install() -> Path:
    """The binary, fetched on first use. Raises PerfAnalyzerError where pip cannot."""
    binary = FOLDER / "perf_analyzer"
    if not binary.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=FOLDER) as folder:
            pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
            command = [*pip, "--platform", PLATFORM, "--only-binary=:all:", "--dest", folder, WHEEL]
            fetched = subprocess.run(command, capture_output=True, text=True, check=False)
            if fetched.returncode != 0:
                raise PerfAnalyzerError(f"`{' '.join(command)}` failed:\n{fetched.stderr.strip()[-1000:]}")
            (wheel,) = Path(folder).glob("*.whl")
            aside = Path(folder) / "perf_analyzer"
            aside.write_bytes(zipfile.ZipFile(wheel).read(MEMBER))
            aside.chmod(0o755)
            os.replace(aside, binary)
    for name, pattern in LIBRARIES.items():
        link = FOLDER / name
        link.unlink(missing_ok=True)
        found = list(
            (server_environment().root / "lib").glob(f"python3.*/site-packages/nvidia_pytriton.libs/{pattern}")
        )
        if not found:
            raise PerfAnalyzerError(f"{pattern} is not in the server's environment, and perf_analyzer needs {name}")
        link.symlink_to(found[0])
    return binary


def closed_loop(
    url: str, products: Sequence[Product], concurrency: int, batch: int, seconds: float
) -> dict[str, float]:
    """Throughput and latency of `categorize` under `concurrency` callers, as perf_analyzer measures them.

    Returns:
        products_per_second, p50_ms, p90_ms, p99_ms.

    Raises:
        PerfAnalyzerError: it cannot be had, or failed.
    """
    binary = install()
    with tempfile.TemporaryDirectory() as folder:
        data, table = Path(folder) / "data.json", Path(folder) / "table.csv"
        rows = [
            {"image": {"b64": base64.b64encode(_element(product.images[0])).decode()}, "title": [product.title]}
            for product in products
        ]
        data.write_text(json.dumps({"data": rows}))
        command = [str(binary), "-m", "categorize", "-u", url, "-i", "grpc", "-b", str(batch), "-f", str(table)]
        command += ["--shape", "image:1", "--shape", "title:1", "--input-data", str(data)]
        command += ["--concurrency-range", str(concurrency), "--measurement-interval", str(int(1000 * seconds / 3))]
        # It averages three windows once they are stable, here always: repetitions and spread are the suite's own.
        command += ["--max-trials", "3", "--stability-percentage", "999", "--percentile", "50"]
        environment = os.environ | {"LD_LIBRARY_PATH": str(FOLDER)}
        try:
            result = subprocess.run(
                command, capture_output=True, text=True, check=False, env=environment, timeout=60 + 10 * seconds
            )
        except subprocess.TimeoutExpired as error:
            raise PerfAnalyzerError(f"perf_analyzer did not end within {error.timeout:g} s") from None
        if not table.exists():
            raise PerfAnalyzerError(f"perf_analyzer failed: {(result.stderr or result.stdout).strip()[-1000:]}")
        row = next(csv.DictReader(table.read_text().splitlines()))
    latencies = {f"{name}_ms": float(row[f"{name} latency"]) / 1e3 for name in ("p50", "p90", "p99")}
    return {"products_per_second": float(row["Inferences/Second"]), **latencies}


def _element(data: bytes) -> bytes:
    """An element of a BYTES tensor in Triton's wire form, which is what perf_analyzer takes base64 for."""
    return struct.pack("<I", len(data)) + data
