"""Two runs side by side: which rows belong together, and what counts as a change."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.compare import changes, compare


def row(p50: float, noise: float = 0.05, **settings: object) -> dict:
    return {"server": "Triton", "concurrency": 8, "p50_ms": p50, "noise": {"p50_ms": noise}, "requests": 7} | settings


def test_a_change_is_more_than_the_noise_of_both_runs_together():
    (within,) = changes([row(10.0, 0.05)], [row(10.9, 0.05)])
    (beyond,) = changes([row(10.0, 0.05)], [row(11.1, 0.05)])
    assert not within.beyond_noise
    assert beyond.beyond_noise
    assert beyond.ratio == pytest.approx(1.11)


def test_quiet_runs_still_differ_by_two_per_cent_without_a_change():
    (found,) = changes([row(10.0, 0.0)], [row(10.19, 0.0)])
    assert not found.beyond_noise


def test_what_the_machine_explains_is_no_change():
    noise = {"p50_ms": 0.05, "products_per_second": 0.05}
    before = row(10.0, machine_speed=90.0, products_per_second=100.0) | {"noise": noise}
    slower = row(12.5, machine_speed=72.0, products_per_second=80.0) | {"noise": noise}
    assert not any(change.beyond_noise for change in changes([before], [slower]))
    assert all(change.beyond_noise for change in changes([before], [slower | {"machine_speed": 90.0}]))


def test_what_follows_the_machine_in_part_or_not_at_all_is_no_change_either():
    before = row(10.0, machine_speed=80.0)
    assert not any(change.beyond_noise for change in changes([before], [row(10.0, machine_speed=100.0)]))
    assert not any(change.beyond_noise for change in changes([before], [row(9.0, machine_speed=100.0)]))
    assert all(change.beyond_noise for change in changes([before], [row(13.0, machine_speed=100.0)]))
    assert all(change.beyond_noise for change in changes([before], [row(6.0, machine_speed=100.0)]))


def test_an_improvement_is_a_change_too():
    (found,) = changes([row(10.0)], [row(5.0)])
    assert found.beyond_noise


def test_rows_are_matched_by_their_settings_and_not_by_their_place():
    before = [row(10.0, concurrency=8), row(2.0, concurrency=1), row(3.0, share_of_capacity=0.5)]
    after = [row(3.0, share_of_capacity=0.5), row(2.0, concurrency=1), row(7.0, concurrency=32)]
    assert [change.ratio for change in changes(before, after)] == [1.0, 1.0]


def test_how_many_requests_there_were_is_no_setting():
    (found,) = changes([row(10.0)], [row(10.0, requests=9)])
    assert found.ratio == 1.0


def test_files_are_compared_and_changes_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for name, p50 in (("a", 10.0), ("b", 20.0)):
        record = {"name": "serving", "commit": name * 40, "date": "2026-01-01", "machine": {}, "rows": [row(p50)]}
        (tmp_path / f"{name}.json").write_text(json.dumps(record))
    assert compare(tmp_path / "a.json", tmp_path / "b.json") == 1
    assert "x2.000" in capsys.readouterr().out


def test_files_with_nothing_in_common_are_refused(tmp_path: Path):
    record = {"name": "serving", "commit": "a", "date": "2026-01-01", "machine": {}, "rows": [{"p50_ms": 1.0}]}
    path = tmp_path / "a.json"
    path.write_text(json.dumps(record))
    with pytest.raises(ValueError, match="no figure with noise in common"):
        compare(path, path)


def test_a_file_that_holds_no_results_is_named(tmp_path: Path):
    path = tmp_path / "other.json"
    path.write_text("[]")
    with pytest.raises(ValueError, match=r"other\.json holds no rows"):
        compare(path, path)
