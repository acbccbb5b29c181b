"""A bundle of any system as part of the next release: the front door of the export."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from catalogue.feed import Feed
from repository.release import digests
from training.bundle import load_bundle, system_of
from training.colour_bundle import load_colour_bundle

from .categorize import categorizer_system
from .match_colours import colour_matcher_system, colour_matcher_system_for_gpu
from .precision import Runtime
from .system import ExportReport, ExportTarget, ServedSystem, export_system


def export_bundle(
    bundle_folder: Path,
    repository: Path,
    *,
    target: ExportTarget | None = None,
    feed: Feed | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> ExportReport:
    """Exports a bundle: the next release has it, and all other systems of the one before.

    Args:
        bundle_folder: from `shelfwise train`.
        repository: the model repository to publish to; created when missing.
        target: what will run it and in which precision; float32 for ONNX Runtime when None.
        feed: its training split calibrates int8 and fp8, its validation split is compared beside the bundle's few.
        progress: told what is being done.

    Raises:
        training.bundle.BundleError: the bundle cannot be used.
        export.onnx_graphs.ExportError: a graph cannot be exported, or not for that target.
        export.parity.ParityError: a graph answers differently; nothing is published and the old release stays.
        catalogue.feed.FeedError: the feed is broken, or has no product to calibrate on.
    """
    target = target or ExportTarget()
    system = _system(bundle_folder, feed, target)
    content = json.dumps(digests(bundle_folder)).encode()
    origin = {
        "bundle": str(bundle_folder),
        "bundle_sha256": hashlib.sha256(content).hexdigest(),
        "shelfwise": importlib.metadata.version("shelfwise"),
    }
    system = replace(system, release={**system.release, **origin})
    return export_system(system, repository, target, progress=progress)


def _system(bundle_folder: Path, feed: Feed | None, target: ExportTarget) -> ServedSystem:
    if system_of(bundle_folder) == "categorize":
        return categorizer_system(load_bundle(bundle_folder), bundle_folder, target.runtime, feed)
    if target.runtime is Runtime.GPU:
        return colour_matcher_system_for_gpu(load_colour_bundle(bundle_folder), bundle_folder, feed)
    return colour_matcher_system(load_colour_bundle(bundle_folder), bundle_folder, target.runtime, feed)
