"""What tests of several packages share: a sample catalogue, a categorizer trained on it, its repository, a server.

All of it is real and small: some hundred drawn products, an epoch of each training stage, the exported graphs, Triton.
Feeds and bundles are built once, on first use, by the first of the test processes that needs them; repositories and
servers once a process, since tests change what they serve.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from filelock import FileLock
from typer.testing import CliRunner

if TYPE_CHECKING:
    from training.bundle import Bundle
    from training.recipe import Recipe
    from training.settings import Settings

PROJECT = Path(__file__).resolve().parents[1]

BuildOnce = Callable[[str, Callable[[Path], object]], Path]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Training, the longest, first: in two processes nothing waits for it at the end."""
    items.sort(key=lambda item: item.path.parent.name != "training")


@pytest.fixture(autouse=True)
def precision_of_its_own() -> Iterator[None]:
    """What a test chose to compute in is not the next one's: accelerate keeps one state a process."""
    yield
    if "accelerate.state" in sys.modules:
        sys.modules["accelerate.state"].AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of the real data sets; the test is skipped where it is absent."""
    folder = Path(os.environ.get("SHELFWISE_DATA", PROJECT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real data not found at {folder}; set SHELFWISE_DATA to its folder")
    return folder


@pytest.fixture(scope="session")
def build_once(tmp_path_factory: pytest.TempPathFactory) -> BuildOnce:
    """Gives the folder of a name; `build` fills it, in one of the test processes while the others wait."""
    base = tmp_path_factory.getbasetemp()
    common = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def build_folder(name: str, build: Callable[[Path], object]) -> Path:
        folder, built = common / name, common / f"{name}.built"
        with FileLock(common / f"{name}.lock"):
            if not built.exists():
                folder.mkdir(exist_ok=True)
                build(folder)
                built.touch()
        return folder

    return build_folder


@pytest.fixture(scope="session")
def sample_feed(build_once: BuildOnce) -> Path:
    """A drawn catalogue of 400 products."""
    from catalogue.sample import generate_sample

    name = "sample.parquet"
    return build_once("sample", lambda folder: generate_sample(folder / name, products=400, seed=0)) / name


@pytest.fixture(scope="session")
def categorize_bundle(sample_feed: Path, build_once: BuildOnce) -> Path:
    """A bundle trained on the drawn catalogue for one epoch a stage."""
    return build_once("categorize", lambda run: train_sample_categorizer(sample_feed, run)) / "bundle"


def train_and_save(recipe: type[Recipe[Any, Any, Any]], feed: Path, settings: Settings, run: Path) -> Bundle[Any, Any]:
    """A system trained on a feed, its bundle written to RUN/bundle."""
    from catalogue.feed import open_feed
    from training.recipe import train
    from training.train import make_accelerator

    bundle = train(recipe, open_feed(feed), settings, run, make_accelerator())
    recipe.kind.save(run / "bundle", bundle)
    return bundle


def train_sample_categorizer(feed: Path, run: Path) -> None:
    from training.categorize import CategorizeRecipe, CategorizeSettings
    from training.settings import TrainConfig

    settings = CategorizeSettings(
        image_tower="scratch",
        image_height=64,
        image_width=48,
        embed_dim=64,
        vocab_size=1000,
        contrastive=TrainConfig(epochs=1, batch_size=64),
        head=TrainConfig(epochs=2, batch_size=64),
        finetune=TrainConfig(epochs=1, batch_size=32),
    )
    train_and_save(CategorizeRecipe, feed, settings, run)


@pytest.fixture(scope="session")
def categorize_repository(categorize_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The release of a repository of its own that the bundle was exported to."""
    from export.bundles import export_bundle
    from repository.release import current

    repository = tmp_path_factory.mktemp("served") / "repository"
    export_bundle(categorize_bundle, repository)
    return current(repository)


@pytest.fixture(scope="session")
def categorize_server(categorize_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    """A running Triton on the exported repository, on free ports of localhost."""
    from serving.server import TritonServer

    log = tmp_path_factory.mktemp("log") / "triton.log"
    server = TritonServer(categorize_repository, grpc_port=0, metrics_port=0, log_file=log)
    with server:
        yield server


@pytest.fixture(scope="session")
def retrieve_bundle(sample_feed: Path, build_once: BuildOnce) -> Path:
    """A retriever trained on the drawn catalogue for a few epochs on frozen features, with its index beside it."""
    return build_once("retrieve", lambda run: train_sample_retriever(sample_feed, run)) / "bundle"


def train_sample_retriever(feed: Path, run: Path) -> None:
    from catalogue.feed import open_feed
    from export.index_feed import index_feed
    from training.retrieval import RETRIEVER, RetrievalRecipe, RetrievalSettings
    from training.settings import TrainConfig

    settings = RetrievalSettings(
        image_height=64,
        image_width=48,
        embed_dim=64,
        vocab_size=1000,
        min_count=3,
        frozen=TrainConfig(epochs=4, batch_size=64, learning_rate=2e-3),
        finetune=TrainConfig(epochs=1, batch_size=64),
    )
    train_and_save(RetrievalRecipe, feed, settings, run)
    index_feed(open_feed(feed), RETRIEVER.load(run / "bundle"), run / "bundle")


@pytest.fixture(scope="session")
def retrieve_repository(retrieve_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The release of a repository of its own that retriever and index were exported to."""
    from export.bundles import export_bundle
    from repository.release import current

    repository = tmp_path_factory.mktemp("served") / "repository"
    export_bundle(retrieve_bundle, repository)
    return current(repository)


@pytest.fixture(scope="session")
def retrieve_server(retrieve_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    """A running Triton on the exported retriever, on free ports of localhost."""
    from serving.server import TritonServer

    log = tmp_path_factory.mktemp("log") / "triton.log"
    with TritonServer(retrieve_repository, grpc_port=0, metrics_port=0, log_file=log) as server:
        yield server


@pytest.fixture(scope="session")
def colour_feed(build_once: BuildOnce) -> Path:
    """Sixty drawn products in two to eight colours, half of them labelled in Chinese."""
    from catalogue.colour_sample import generate_colour_sample

    name = "colours.parquet"
    return build_once("colours", lambda folder: generate_colour_sample(folder / name, products=60, seed=0)) / name


@pytest.fixture(scope="session")
def colour_bundle(colour_feed: Path, build_once: BuildOnce) -> Path:
    """A colour matcher trained on the drawn products for a few epochs a stage."""
    return build_once("match-colours", lambda run: train_sample_matcher(colour_feed, run)) / "bundle"


def train_sample_matcher(feed: Path, run: Path) -> None:
    from training.match_colours import ColourRecipe, ColourSettings
    from training.settings import TrainConfig

    settings = ColourSettings(
        image_height=64,
        image_width=56,
        contrastive=TrainConfig(epochs=6, batch_size=32),
        joint=TrainConfig(epochs=2, batch_size=8, learning_rate=5e-4),
        frozen=TrainConfig(epochs=1, batch_size=16, learning_rate=5e-4),
        views=1,
    )
    train_and_save(ColourRecipe, feed, settings, run)


@pytest.fixture(scope="session")
def colour_repository(colour_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The release of a repository of its own that the colour matcher was exported to."""
    from export.bundles import export_bundle
    from repository.release import current

    repository = tmp_path_factory.mktemp("served") / "repository"
    export_bundle(colour_bundle, repository)
    return current(repository)


@pytest.fixture(scope="session")
def fused_repository(colour_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The colour matcher exported for a GPU: a Python model with the fused matcher, which runs in torch on a CPU."""
    import shelfwise
    from repository.release import current

    repository = tmp_path_factory.mktemp("fused") / "repository"
    command = ["export", str(colour_bundle), "--target", "gpu", "--repository", str(repository)]
    result = CliRunner().invoke(shelfwise.app, command)
    assert result.exit_code == 0, result.output
    return current(repository)


@pytest.fixture(scope="session")
def colour_server(colour_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    """A running Triton on the exported colour matcher, on free ports of localhost."""
    from serving.server import TritonServer

    log = tmp_path_factory.mktemp("log") / "triton.log"
    with TritonServer(colour_repository, grpc_port=0, metrics_port=0, log_file=log) as server:
        yield server


@pytest.fixture(scope="session")
def match_bundle(sample_feed: Path, build_once: BuildOnce) -> Path:
    """A text-image matcher trained on the drawn catalogue for an epoch a stage."""
    return build_once("match-text-image", lambda run: train_sample_fashionbert(sample_feed, run)) / "bundle"


def train_sample_fashionbert(feed: Path, run: Path) -> None:
    from training.match_text_image import MatchRecipe, MatchSettings
    from training.settings import TrainConfig

    settings = MatchSettings(
        image_height=64,
        image_width=48,
        grid_rows=4,
        grid_columns=4,
        hidden_size=96,
        layers=2,
        vocab_size=1000,
        visual_words=32,
        balance="gradients",
        pairs=TrainConfig(epochs=1, batch_size=32),
        queries=TrainConfig(epochs=1, batch_size=32),
    )
    train_and_save(MatchRecipe, feed, settings, run)


@pytest.fixture(scope="session")
def match_repository(match_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The release that the matcher was exported to."""
    from export.bundles import export_bundle
    from repository.release import current

    repository = tmp_path_factory.mktemp("served") / "repository"
    export_bundle(match_bundle, repository)
    return current(repository)
