"""Brands read off titles."""

import pytest

from catalogue.brands import SEEN_OFTEN, BrandVocabulary

OFTEN = [
    *["Lee Men Blue Jeans"] * SEEN_OFTEN,
    *["Lee Cooper Women Black Shoes"] * SEEN_OFTEN,
    *["Lino Perros Women Bag"] * SEEN_OFTEN,
    *["FILA Men White Shoes"] * SEEN_OFTEN,
    "Fila Men Black Shoes",
]


@pytest.mark.parametrize(
    ("title", "brand"),
    [
        ("Lee Men Jeans", "Lee"),
        ("Lee Cooper Men Shoes", "Lee Cooper"),
        ("Lee Silver Ring", "Lee"),
        ("Lino Perros Maroon Women Bag", "Lino Perros"),
        ("lino  perros bag", "Lino Perros"),
        ("Fila Women Shoes", "FILA"),
        ("Leeds United Men Tshirt", "Leeds United"),
        ("Rare Maker Women's Dress", "Rare Maker"),
        ("Silver Ring", None),
        ("Women Dress", None),
        ("", None),
        ("Mentor Womenswear Dress", None),
    ],
)
def test_brand_is_the_start_of_the_title(title, brand):
    assert BrandVocabulary(OFTEN).brand_of(title) == brand


def test_a_start_seen_seldom_is_no_brand_for_other_titles():
    vocabulary = BrandVocabulary(["Rare Maker Women Dress"] * (SEEN_OFTEN - 1))
    assert vocabulary.brand_of("Rare Maker Dress") is None
    assert vocabulary.brand_of("Rare Maker Women Dress") == "Rare Maker"
