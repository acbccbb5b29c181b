import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from index import publish as publishing
from index.publish import IndexedProduct
from index.search import Searcher
from index.snapshot import Encoder, SnapshotError, open_snapshot

from .conftest import COLUMNS, ENCODER, Publish, embed, product, vector_of

PROJECT = Path(__file__).resolve().parents[2]


def test_a_snapshot_gives_back_what_was_written(publish_to: Publish, tmp_path: Path) -> None:
    products = [product(number) for number in range(6)] + [product(6, [b"6", b"600"])]
    summary = publish_to(products)
    assert (summary.products, summary.photos, summary.embedded) == (7, 8, 8)
    snapshot = open_snapshot(tmp_path / "index", ENCODER)
    assert [snapshot.id_of(number) for number in range(7)] == [p.id for p in products]
    assert [snapshot.product_of(p.id) for p in products] == list(range(7))
    assert snapshot.product_of("id-9") is None
    np.testing.assert_array_equal(snapshot.vectors, embed([b"0", b"1", b"2", b"3", b"4", b"5", b"6", b"600"]))
    assert snapshot.product.tolist() == [0, 1, 2, 3, 4, 5, 6, 6]
    assert snapshot.photo.tolist() == [0] * 7 + [1]
    names = snapshot.manifest.columns
    for number, p in enumerate(products):
        codes = snapshot.attributes[number]
        found = {c: names[c][code] if code >= 0 else "" for c, code in zip(COLUMNS, codes, strict=True)}
        assert found == p.attributes


def test_a_second_run_embeds_only_what_changed_and_forgets_what_is_gone(publish_to: Publish, tmp_path: Path) -> None:
    publish_to([product(number) for number in range(10)])
    asked: list[bytes] = []

    def counting(images: list[bytes]) -> np.ndarray:
        asked.extend(images)
        return embed(images)

    # 3 is gone, 4 has a new photo, 5 was renamed, 20 is new.
    changed = [product(n) for n in (0, 1, 2, 6, 7, 8, 9, 20)] + [
        product(4, [b"400"]),
        IndexedProduct("renamed", [b"5"], {"brand": "Puma"}),
    ]
    summary = publish_to(changed, embed=counting)
    assert sorted(asked) == [b"20", b"400"]
    assert (summary.embedded, summary.deleted, summary.products) == (2, 2, 10)
    snapshot = open_snapshot(tmp_path / "index")
    assert snapshot.product_of("id-3") is None
    hits = Searcher(snapshot).search(np.stack([vector_of(5), vector_of(400), vector_of(3)]), 1)
    assert [snapshot.id_of(int(hit.products[0])) for hit in hits][:2] == ["renamed", "id-4"]
    assert hits[2].scores[0] < 0.99


def test_another_encoder_embeds_everything_anew(publish_to: Publish) -> None:
    publish_to([product(number) for number in range(4)])
    other = Encoder(ENCODER.model, ENCODER.tokenizer, "dd")
    assert publish_to([product(number) for number in range(4)], encoder=other).embedded == 4


def test_a_snapshot_of_another_encoder_is_refused_with_both_hashes(publish_to: Publish, tmp_path: Path) -> None:
    publish_to([product(0)])
    with pytest.raises(SnapshotError, match=r"model is aa, that of the queries ff") as refused:
        open_snapshot(tmp_path / "index", Encoder("ff", "bb", "cc"))
    assert "shelfwise index" in str(refused.value)


@pytest.mark.parametrize("name", ["vectors.f32", "ids.utf8", "attributes.i32", "product.i32"])
def test_a_changed_cut_or_missing_file_is_refused_by_name(publish_to: Publish, tmp_path: Path, name: str) -> None:
    publish_to([product(number) for number in range(4)])
    path = tmp_path / "index" / name
    content = path.read_bytes()
    for damaged in (content[:-1], bytes([content[0] ^ 1]) + content[1:]):
        path.write_bytes(damaged)
        with pytest.raises(SnapshotError, match=rf"{name} is not what was written"):
            open_snapshot(tmp_path / "index")
    path.unlink()
    with pytest.raises(SnapshotError, match=rf"{name} is missing"):
        open_snapshot(tmp_path / "index")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is no JSON"),
        ("[]", "format_version is None"),
        ('{"format_version": 99}', "format_version is 99"),
        ('{"format_version": 1, "partition": null}', "is no manifest"),
    ],
)
def test_a_broken_manifest_is_refused(publish_to: Publish, tmp_path: Path, content: str, message: str) -> None:
    publish_to([product(0)])
    (tmp_path / "index" / "manifest.json").write_text(content)
    with pytest.raises(SnapshotError, match=message):
        open_snapshot(tmp_path / "index")
    (tmp_path / "index" / "manifest.json").unlink()
    with pytest.raises(SnapshotError, match="is no snapshot"):
        open_snapshot(tmp_path / "index")


def test_products_without_a_readable_photo_are_left_out_and_counted(publish_to: Publish, tmp_path: Path) -> None:
    summary = publish_to([product(0), product(1, []), product(2, [b"broken"]), product(3, [b"broken", b"3"])])
    assert (summary.products, summary.without_photo, summary.unreadable, summary.embedded) == (2, 2, 2, 2)
    snapshot = open_snapshot(tmp_path / "index")
    assert snapshot.photo.tolist() == [0, 1]


def test_two_products_of_one_id_are_refused_and_the_old_snapshot_stays(publish_to: Publish, tmp_path: Path) -> None:
    publish_to([product(0)])
    with pytest.raises(ValueError, match="'id-1' is there twice"):
        publish_to([product(1), product(1)])
    assert len(open_snapshot(tmp_path / "index")) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


def test_an_encoder_of_the_wrong_width_is_refused(publish_to: Publish) -> None:
    with pytest.raises(ValueError, match=r"the encoder gave \(1, 3\) for 1 images of width 32"):
        publish_to([product(0)], embed=lambda images: np.zeros((len(images), 3), np.float32))


def test_a_disk_that_is_full_leaves_the_old_snapshot(
    publish_to: Publish, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_to([product(0)])

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(publishing, "file_digest", full)
        with pytest.raises(OSError, match="No space left"):
            publish_to([product(number) for number in range(5)])
    assert len(open_snapshot(tmp_path / "index")) == 1
    assert publish_to([product(number) for number in range(5)]).embedded == 4


KILLED = """
import os, signal, sys
import numpy as np
from pathlib import Path
from index.publish import publish
from tests.index.conftest import COLUMNS, ENCODER, WIDTH, embed, product

def dying(images):
    os.kill(os.getpid(), signal.SIGKILL)

queries = np.ones((1, WIDTH), np.float32)
publish(Path(sys.argv[1]), [product(number) for number in range(5)], dying, ENCODER, COLUMNS, queries)
"""


def test_killed_while_indexing_the_old_snapshot_stays_and_the_next_run_works(
    publish_to: Publish, tmp_path: Path
) -> None:
    publish_to([product(0)])
    run = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "index")], cwd=PROJECT, env=dict(os.environ))
    assert run.returncode == -signal.SIGKILL
    assert len(open_snapshot(tmp_path / "index")) == 1
    assert publish_to([product(number) for number in range(5)]).products == 5
    assert json.loads((tmp_path / "index" / "manifest.json").read_text())["products"] == 5
