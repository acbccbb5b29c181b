from __future__ import annotations

import ast
import random
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import catalogue.colour_labels
from catalogue.colour_labels import MAX_CHARACTERS, clean_labels
from catalogue.colour_words import CHINESE
from catalogue.label_noise import LabelNoise, written_labels

LOUD = LabelNoise(synonym=0.0, article=1.0, note=1.0, code=0.0, mark=0.0, case=0.0, shuffle=0.0)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["Black Shirt (ships within 30 days)", "White Shirt"], ["Black", "White"]),
        (["藏青色T恤（付款后30天内发货）", "白色T恤"], ["藏青", "白"]),
        (["【现货】黑色", "卡其"], ["黑", "卡其"]),
        (["Navy [new {last}] Blue", "Red"], ["Navy Blue", "Red"]),
        (["Blue Shirt", "Navy Blue Shirt"], ["Blue", "Navy Blue"]),
        (["Colour 1", "Colour 2"], ["Colour 1", "Colour 2"]),
        (["black - shirt", "white - SHIRT"], ["black", "white"]),
        (["Ｂｌａｃｋ　", "红\x00色"], ["Black", "红"]),
    ],
)
def test_drops_notes_common_ending_and_empty_suffix(labels: list[str], expected: list[str]) -> None:
    assert clean_labels(labels) == expected


@pytest.mark.parametrize("labels", [[], [""], ["", "red"], ["red", "red"], ["色", "红"], ["shirt", "black shirt"]])
def test_never_takes_the_last_word_of_a_label(labels: list[str]) -> None:
    assert [bool(label) for label in clean_labels(labels)] == [bool(label) for label in labels]


def test_label_of_brackets_alone_keeps_their_text() -> None:
    assert clean_labels(["(red)", "[blue]", "()"]) == ["red", "blue", ""]


def test_common_ending_cuts_no_word() -> None:
    assert clean_labels(["Tred", "Lred"]) == ["Tred", "Lred"]


def test_repeated_labels_do_not_count_as_common_text() -> None:
    assert clean_labels(["dark red", "dark red", "dark red"]) == ["dark red"] * 3


def test_looks_at_the_beginning_of_a_megabyte_alone() -> None:
    [label] = clean_labels(["黑" * 10**6])
    assert len(label) == MAX_CHARACTERS


@pytest.mark.parametrize("chinese", [0.0, 1.0])
def test_undoes_what_sellers_add(chinese: float) -> None:
    colours = ["Black", "Navy Blue", "Off White", "Rust"]
    noise = replace(LOUD, chinese=chinese)
    expected = [CHINESE[colour][0].removesuffix("色") for colour in colours] if chinese else colours
    for seed in range(50):
        written = written_labels(colours, noise, random.Random(seed))
        assert clean_labels(written) == expected, written


def test_every_colour_stays_itself_after_noise_and_cleaning() -> None:
    colours = sorted(CHINESE)
    for seed in range(200):
        cleaned = clean_labels(written_labels(colours, LabelNoise(code=0.0), random.Random(seed)))
        assert len({label.casefold() for label in cleaned}) == len(colours)


@given(st.lists(st.text(max_size=30), max_size=6))
def test_any_text_gives_one_label_each_and_the_same_again(labels: list[str]) -> None:
    cleaned = clean_labels(labels)
    assert len(cleaned) == len(labels)
    assert cleaned == clean_labels(labels)
    assert len(set(zip(labels, cleaned, strict=True))) == len(set(labels))  # equal labels stay equal


def test_imports_the_standard_library_alone() -> None:
    tree = ast.parse(Path(catalogue.colour_labels.__file__).read_text(encoding="utf-8"))
    names = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    names |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    assert {name.split(".")[0] for name in names} <= sys.stdlib_module_names
