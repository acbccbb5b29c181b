"""The category tree: order of classes, distances, and the files it is read from."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from catalogue.product import Product
from catalogue.taxonomy import Taxonomy, most_frequent_paths

SHOES = ("Apparel", "Shoes", "Boots")
SANDALS = ("Apparel", "Shoes", "Sandals")
SHIRTS = ("Apparel", "Topwear", "Shirts")
MUGS = ("Home", "Mugs")

paths = st.lists(st.sampled_from("abc"), min_size=1, max_size=4).map(tuple)


@given(st.lists(paths, min_size=1))
def test_class_ids_depend_on_the_set_of_paths_alone(listed):
    taxonomy = Taxonomy.from_paths(listed)
    assert taxonomy == Taxonomy.from_paths(reversed(listed + listed))
    assert taxonomy.paths == tuple(sorted(set(listed)))
    for i, path in enumerate(taxonomy.paths):
        assert taxonomy.index(path) == i
        assert taxonomy.label(i) == " > ".join(path)


def _reference_height_of_lca(taxonomy, a, b):
    """By walking: the longest way down from the longest common prefix, the nodes found anew each time."""
    if a == b:
        return 0
    common = []
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        common.append(x)
    below = [path for path in taxonomy.paths if path[: len(common)] == tuple(common)]
    return max(len(path) - len(common) for path in below)


@given(st.lists(paths, min_size=1, max_size=12))
def test_distance_is_the_height_of_the_lowest_common_ancestor(listed):
    taxonomy = Taxonomy(listed)
    for a, b in itertools.product(taxonomy.paths, repeat=2):
        assert taxonomy.height_of_lca(a, b) == _reference_height_of_lca(taxonomy, a, b)
        assert taxonomy.height_of_lca(a, b) == taxonomy.height_of_lca(b, a)


def test_distances_of_a_small_tree():
    taxonomy = Taxonomy([SHOES, SANDALS, SHIRTS, MUGS])
    assert taxonomy.height_of_lca(SHOES, SHOES) == 0
    assert taxonomy.height_of_lca(SHOES, SANDALS) == 1
    assert taxonomy.height_of_lca(SHOES, SHIRTS) == 2
    assert taxonomy.height_of_lca(SHOES, MUGS) == 3 == taxonomy.depth


def test_classes_and_labels_outside_the_taxonomy_are_refused():
    taxonomy = Taxonomy([SHOES, MUGS])
    with pytest.raises(KeyError, match="Shirts"):
        taxonomy.height_of_lca(SHOES, SHIRTS)
    with pytest.raises(KeyError, match="Apparel"):
        taxonomy.index(("Apparel",))
    with pytest.raises(IndexError, match="2"):
        taxonomy.label(2)
    with pytest.raises(IndexError, match="-1"):
        taxonomy.label(-1)


@pytest.mark.parametrize("label", ["A > B", "A>B", "A\nB", "", " \u200b"])
def test_labels_that_a_line_cannot_hold_are_refused(label):
    with pytest.raises(ValueError, match="label"):
        Taxonomy([("Top", label)])


def test_a_taxonomy_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        Taxonomy([])
    with pytest.raises(ValueError, match="empty"):
        Taxonomy([(), MUGS])


def test_products_of_unknown_category_add_no_class():
    products = [Product(str(i), (), "", path, {}, "train") for i, path in enumerate([SHOES, (), MUGS, SHOES])]
    assert Taxonomy.from_products(products).paths == (SHOES, MUGS)


OFFICIAL = """\
# Google_Product_Taxonomy_Version: 2021-09-21
1 - Animals & Pet Supplies
3237 - Animals & Pet Supplies > Live Animals
2 - Animals & Pet Supplies > Pet Supplies
3 - Animals & Pet Supplies > Pet Supplies > Bird Supplies
166 - Apparel & Accessories
"""

NESTED = """\
# Google Product Taxonomy with Nested Set Model
# Source: https://www.google.com/basepages/producttype/taxonomy.en-US.txt

   1 | [   1-   8] | Animals & Pet Supplies
     2 | [   2-   3] | Live Animals
     3 | [   4-   7] | Pet Supplies
       4 | [   5-   6] | Bird Supplies
   5 | [   9-  10] | Apparel & Accessories
"""


def test_both_forms_of_googles_taxonomy_give_the_same_tree(tmp_path):
    (tmp_path / "official.txt").write_text(OFFICIAL, encoding="utf-8-sig")
    (tmp_path / "nested.txt").write_text(NESTED)
    official = Taxonomy.read_google(tmp_path / "official.txt")
    assert official == Taxonomy.read_google(tmp_path / "nested.txt")
    assert len(official) == 5
    assert official.leaves().paths == (
        ("Animals & Pet Supplies", "Live Animals"),
        ("Animals & Pet Supplies", "Pet Supplies", "Bird Supplies"),
        ("Apparel & Accessories",),
    )


def test_the_tree_of_a_nested_set_follows_the_intervals_not_the_indentation(tmp_path):
    (tmp_path / "flat.txt").write_text("\n".join(line.strip() for line in NESTED.splitlines()))
    (tmp_path / "nested.txt").write_text(NESTED)
    assert Taxonomy.read_google(tmp_path / "flat.txt") == Taxonomy.read_google(tmp_path / "nested.txt")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("1 - A\nB > C\n", "line 2.*neither"),
        ("1 | [1-4] | A\n2 | [2-9] | B\n", "line 2.*nest"),
        ("1 | [4-1] | A\n", "line 1.*nest"),
        ("1 - A > > B\n", "line 1"),
        ("# nothing\n\n", "no category"),
    ],
)
def test_broken_taxonomy_files_are_refused_by_file_and_line(tmp_path, text, complaint):
    file = tmp_path / "taxonomy.txt"
    file.write_text(text)
    with pytest.raises(ValueError, match=f"(?s)taxonomy.txt.*{complaint}"):
        Taxonomy.read_google(file)


def test_a_list_of_paths_is_read(tmp_path):
    file = tmp_path / "paths.txt"
    file.write_text("# own\nHome > Mugs\n\nApparel > Shoes > Boots\n", encoding="utf-8")
    assert Taxonomy.read_paths(file).paths == (SHOES, MUGS)


def test_classes_that_look_alike_are_one_and_found_by_any_spelling(tmp_path):
    file = tmp_path / "paths.txt"
    file.write_text("Home > Café\nHome>Cafe\u0301\nHome\u00a0&gt; Café\u200b\nHome > Mugs\n", encoding="utf-8")
    taxonomy = Taxonomy.read_paths(file)
    assert taxonomy.paths == (("Home", "Café"), MUGS)
    assert taxonomy == Taxonomy.from_paths([("Home", "Café"), ("Home ", "Cafe\u0301"), ("Home", "Mugs\ufeff")])
    assert taxonomy.find("Home>Cafe\u0301") == taxonomy.find("Caf&eacute;") == 0
    (tmp_path / "google.txt").write_text("1 - A &amp; B\n2 - A & B>C\u00a0D\n")
    assert Taxonomy.read_google(tmp_path / "google.txt").paths == (("A & B",), ("A & B", "C D"))


def test_most_frequent_path_of_a_leaf_wins_and_the_first_of_equals():
    counts = {("B", "x"): 2, ("A", "x"): 1, ("D", "y"): 3, ("C", "y"): 3, (): 9}
    assert most_frequent_paths(counts) == {"x": ("B", "x"), "y": ("C", "y")}
