"""What a pronoun might stand for."""

import pytest

from hf_glmd.tasks.superglue_rows import noun_phrases


@pytest.mark.parametrize(
    ("text", "phrases"),
    [
        (
            "The city councilmen refused the demonstrators a permit because they feared violence.",
            ["The city councilmen", "the demonstrators", "a permit"],
        ),
        ("Mr. Moncrieff visited Chester's flat, but he was not at home.", ["Mr. Moncrieff", "Chester's"]),
        ("Luckily Bob Smith saw her old dog running.", ["Bob Smith", "her old dog"]),
        ("It was late.", []),
        ("Ann met Ann.", ["Ann"]),
    ],
)
def test_names_and_what_follows_a_determiner(text, phrases):
    assert noun_phrases(text) == phrases
