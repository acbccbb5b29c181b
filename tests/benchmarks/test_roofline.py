"""The roofline is drawn from results alone, and not drawn where nothing was measured."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from benchmarks.kernels.label_kl import measured
from benchmarks.kernels.roofline import plot
from benchmarks.kernels.timing import Timing, not_measured
from benchmarks.results import write


def test_measured_kernels_are_drawn(tmp_path: Path):
    rows = [
        measured(f"{size} MB", variant, "graph", Timing(time, time * 0.9, time * 1.1), size * 10**6, 0.9 * time)
        for size, time in ((143, 38.0), (717, 180.0))
        for variant in ("kernel", "eager")
    ]
    rows.append(not_measured("143 MB", "rival", "graph", "not installed"))
    drawn = plot(write("label_kl", rows, (), tmp_path))
    assert drawn == tmp_path / "label_kl-roofline.png"
    with Image.open(drawn) as image:
        assert image.width > 500
        assert len(image.convert("RGB").getcolors(10**6)) > 5


def test_without_a_gpu_nothing_is_drawn(tmp_path: Path):
    rows = [not_measured("143 MB", "kernel", "graph", "no GPU")]
    assert plot(write("label_kl", rows, (), tmp_path)) is None
    assert list(tmp_path.glob("*.png")) == []
