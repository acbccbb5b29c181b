from pathlib import Path

import pytest

from catalogue.entities import EntityError, EntityVocabulary

VALUES = {
    "brand": ["Diesel", "Navy", "Canada Goose", "Red Tape", "U.S. Polo Assn."],
    "base_colour": ["Black", "White", "Navy Blue", "Red"],
    "usage": ["Casual"],
}


@pytest.fixture
def vocabulary() -> EntityVocabulary:
    return EntityVocabulary(VALUES)


def test_numbers_count_from_one_and_unknown_or_absent_is_zero(vocabulary: EntityVocabulary) -> None:
    assert vocabulary.numbers({"brand": "Diesel", "base_colour": "navy  blue"}) == [1, 3, 0]
    assert vocabulary.numbers({"brand": "Nobody", "usage": ""}) == [0, 0, 0]


def test_a_feed_counts_values_in_any_case_and_writes_them_as_most_products_do() -> None:
    columns = {
        "brand": ["FILA", "Fila", "Fila", "Puma", "Puma", "Rare", ""],
        "usage": ["NA", "na", "nan", "NA", "NA", "NA", "NA"],
        "season": ["Fall", "Fall", "", "", "", "", ""],
    }
    vocabulary = EntityVocabulary.from_columns(columns, min_count=2)
    assert vocabulary.values == {"brand": ("Fila", "Puma"), "season": ("Fall",)}
    assert vocabulary.number("brand", "fila") == 1


def test_vocabulary_is_the_same_after_saving(vocabulary: EntityVocabulary, tmp_path: Path) -> None:
    vocabulary.save(tmp_path / "entities.json")
    assert EntityVocabulary.load(tmp_path / "entities.json").values == vocabulary.values
    (tmp_path / "entities.json").write_text('{"brand": "Diesel"}')
    with pytest.raises(ValueError, match=r"entities\.json"):
        EntityVocabulary.load(tmp_path / "entities.json")


@pytest.mark.parametrize(
    ("text", "entities", "description"),
    [
        ("diesel jacket", {"brand": "Diesel"}, "jacket"),
        ("Canada Goose Men BLACK parka", {"brand": "Canada Goose", "base_colour": "Black"}, "Men parka"),
        # The longest name wins: Red Tape is a brand and no red, Navy Blue a colour and no brand.
        ("Red Tape Men Navy Blue shoe", {"brand": "Red Tape", "base_colour": "Navy Blue"}, "Men shoe"),
        ("Black & White shoe", {"base_colour": "Black"}, "White shoe"),
        ("shoe in black", {"base_colour": "Black"}, "shoe"),
        ("layered dieselish top", {}, "layered dieselish top"),
        ("casual shirt", {"usage": "Casual"}, "casual shirt"),
        ("u.s. polo assn shirt, red", {"brand": "U.S. Polo Assn.", "base_colour": "Red"}, "shirt,"),
        ("black-coloured bag", {"base_colour": "Black"}, "-coloured bag"),
        ("黑色 bag", {"base_colour": "Black"}, "bag"),
        ("", {}, ""),
    ],
)
def test_text_is_parsed_into_entities_and_description(
    vocabulary: EntityVocabulary, text: str, entities: dict[str, str], description: str
) -> None:
    parsed = vocabulary.parse(text)
    assert dict(parsed.entities) == entities
    assert parsed.description == description


def test_a_second_value_of_a_group_stays_in_the_description(vocabulary: EntityVocabulary) -> None:
    parsed = vocabulary.parse("diesel jacket red tape")
    assert parsed.entities["brand"] == "Diesel"
    assert parsed.description == "jacket tape"  # what is no second brand may still be a colour
    assert parsed.entities["base_colour"] == "Red"


def test_lists_of_the_wrong_length_are_refused_with_the_order(vocabulary: EntityVocabulary) -> None:
    assert vocabulary.named(["Diesel", "", " "]) == {"brand": "Diesel"}
    with pytest.raises(EntityError, match=r"2 entities given, 3 expected: brand, base_colour, usage"):
        vocabulary.named(["Diesel", "Black"])
    with pytest.raises(EntityError, match="unknown entity group 'season'; known: brand"):
        vocabulary.numbers({"season": "Fall"})
