"""The systems there are, by name: what command line, export, demonstration and tests go through.

A system is one value: its settings and recipe, what its bundle holds, how it is served.  To add one, write that value
and name it in `SYSTEMS`; values are imported when they are asked for, so that to list them takes no torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from catalogue.feed import Feed
    from training.bundle import Bundle
    from training.recipe import Recipe
    from training.settings import Settings

    from .system import ExportTarget, ServedSystem

SYSTEMS = {
    "categorize": "export.categorize:CATEGORIZE",
    "match-colours": "export.match_colours:MATCH_COLOURS",
    "retrieve": "export.retrieve:RETRIEVE",
    "match-text-image": "export.match_text_image:MATCH_TEXT_IMAGE",
}
"""Where each system's value is, "module:NAME"."""


@dataclass(frozen=True)
class System:
    """One of the systems.

    Attributes:
        name: on the command line and in bundles.
        settings: of its recipe.
        recipe: trains it, and says what its bundle holds.
        served: what there is to export of a bundle, from the bundle, its folder, the target and a feed to calibrate on.
        report: the metrics of its bundle, a line each.
        demo: what shows it on a running server, "module:function".
    """

    name: str
    settings: type[Settings]
    recipe: type[Recipe[Any, Any, Any]]
    served: Callable[[Bundle[Any, Any], Path, ExportTarget, Feed | None], ServedSystem]
    report: Callable[[dict[str, Any]], list[str]]
    demo: str


def system(name: str) -> System:
    """A system by its name.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in SYSTEMS:
        raise ValueError(f"there is no system {name!r}; there are {', '.join(SYSTEMS)}")
    module, _, value = SYSTEMS[name].partition(":")
    found: System = getattr(import_module(module), value)
    return found


def load_bundle(folder: Path) -> tuple[System, Bundle[Any, Any]]:
    """A bundle of any system, and which it is.

    Raises:
        training.bundle.BundleError: the bundle cannot be used, or is of no known system.
    """
    from training.bundle import BundleError, read_config

    name = str(read_config(folder).get("system"))
    if name not in SYSTEMS:
        raise BundleError(f"{folder / 'config.json'} is of system {name!r}; there are {', '.join(SYSTEMS)}")
    found = system(name)
    return found, found.recipe.kind.load(folder)
