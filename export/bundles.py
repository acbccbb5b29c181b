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

from .system import ExportReport, ExportTarget, export_system
from .systems import load_bundle


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
    system, bundle = load_bundle(bundle_folder)
    served = system.served(bundle, bundle_folder, target, feed)
    content = json.dumps(digests(bundle_folder)).encode()
    origin = {
        "bundle": str(bundle_folder),
        "bundle_sha256": hashlib.sha256(content).hexdigest(),
        "shelfwise": importlib.metadata.version("shelfwise"),
    }
    served = replace(served, release={**served.release, **origin})
    return export_system(served, repository, target, progress=progress)
