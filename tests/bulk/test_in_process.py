"""An exported release in this process answers as Triton does with the same files, and on Ray to the byte."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from bulk.in_process import InProcessConnection
from bulk.job import Job, run_with_client
from catalogue.feed import open_feed, write_feed
from client import Categorization, InvalidInput, ShelfwiseClient
from repository.configs import RepositoryError
from serving.server import TritonServer

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def here(categorize_repository: Path) -> Iterator[ShelfwiseClient]:
    with ShelfwiseClient(InProcessConnection(categorize_repository, "categorize")) as client:
        yield client


@pytest.fixture(scope="module")
def feed(sample_feed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """150 products of the sample, one with a broken picture, one with neither picture nor title, one with a title."""
    products = list(open_feed(sample_feed))[:150]
    products[7] = replace(products[7], images=(b"\xff\xd8\xff no picture",))
    products[40] = replace(products[40], images=(), title=" ")
    products[41] = replace(products[41], images=())
    path = tmp_path_factory.mktemp("feed") / "feed.parquet"
    write_feed(path, products)
    return path


def test_answers_and_refusals_are_those_of_the_server(
    here: ShelfwiseClient, categorize_server: TritonServer, feed: Path
) -> None:
    items = [(product.images[0] if product.images else None, product.title) for product in open_feed(feed)]
    with ShelfwiseClient(categorize_server.url) as there:
        pairs = list(zip(here.judge_many(items, k=3), there.judge_many(items, k=3), strict=True))
        assert here.model_digests() == there.model_digests()
    assert len(pairs) == 150
    refused = [pair for pair in pairs if isinstance(pair[0], InvalidInput)]
    assert len(refused) == 2
    for found, wanted in pairs:
        if not isinstance(found, Categorization):
            assert str(wanted).endswith(str(found)), (found, wanted)
            continue
        assert isinstance(wanted, Categorization)
        assert [each.label for each in found.categories] == [each.label for each in wanted.categories]
        figures = [[each.probability for each in answer.categories] for answer in (found, wanted)]
        np.testing.assert_allclose(*figures, atol=1e-5)


def test_the_digest_is_that_of_the_files(categorize_repository: Path, categorize_bundle: Path, tmp_path: Path) -> None:
    """Another export of the same bundle answers alike; one in 8 bits does not."""
    from export.bundles import export_bundle
    from export.precision import Precision
    from export.system import ExportTarget
    from repository.configs import DIGEST, read_config
    from repository.release import current

    digests = [read_config("categorize", categorize_repository).parameters[DIGEST].string_value]
    for precision in (None, Precision.INT8_DYNAMIC):
        export_bundle(categorize_bundle, tmp_path, target=ExportTarget(precision=precision))
        digests.append(read_config("categorize", current(tmp_path)).parameters[DIGEST].string_value)
    assert digests[0] == digests[1] != digests[2]
    assert len(digests[0]) == 64


def test_photos_and_queries_of_the_other_systems(retrieve_repository: Path, feed: Path, tmp_path: Path) -> None:
    with ShelfwiseClient(InProcessConnection(retrieve_repository, "embed_image")) as client:
        out = tmp_path / "r.parquet"
        done = run_with_client(Job(open_feed(feed), "embed-image", out), client)
        image = next(iter(open_feed(feed))).images[0]
        alone = np.asarray(client.embed_image(image))
    assert done.rejected == 1 + sum(not product.images for product in open_feed(feed))
    vectors = np.array(pq.read_table(out)["image_embeds"].to_pylist())
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(vectors[0], alone, atol=1e-5)


def test_what_is_no_ensemble_of_files_is_refused(categorize_repository: Path, tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match="embed_image"):
        InProcessConnection(categorize_repository, "embed_image")
    with pytest.raises(RepositoryError, match="categorizer is no ensemble"):
        InProcessConnection(categorize_repository, "categorizer")


def test_on_ray_the_result_has_the_same_bytes_and_goes_on_without_it(
    categorize_repository: Path, feed: Path, tmp_path: Path
) -> None:
    pytest.importorskip("ray", reason="the package ray[data] is not installed")
    plain, on_ray = tmp_path / "plain.parquet", tmp_path / "ray.parquet"
    common = [sys.executable, "shelfwise.py", "bulk", "categorize", str(feed), "--part-rows", "64", "-k", "2"]
    common += ["--repository", str(categorize_repository)]
    for out, more in ((plain, []), (on_ray, ["--ray", "--workers", "2"])):
        result = subprocess.run(
            [*common, "--out", str(out), *more], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, result.stderr
        assert "150 of them asked about now" in result.stdout
    assert on_ray.read_bytes() == plain.read_bytes()
    assert on_ray.with_suffix(".rejects.jsonl").read_text() == plain.with_suffix(".rejects.jsonl").read_text()
    again = subprocess.run([*common, "--out", str(on_ray)], cwd=ROOT, capture_output=True, text=True, check=False)
    assert "0 of them asked about now" in again.stdout
    other = [*common, "--out", str(on_ray), "--ray", "-k", "3"]
    refused = subprocess.run(other, cwd=ROOT, capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert "another job's" in refused.stderr
    assert "Traceback" not in refused.stderr
