"""Patterns, taken apart."""

import pytest

from hf_glmd.tasks.patterns import Pattern, written


def test_a_pattern_has_two_sides():
    pattern = Pattern("{a} or {my column}? {mask}, {a}!")
    assert pattern.columns == ["a", "my column"]
    assert (pattern.left, pattern.right) == (["", "a", " or ", "my column", "? "], [", ", "a", "!"])
    assert pattern.literals == [" or ", "? ", ", ", "!"]
    assert not pattern.blank_last


def test_fields_are_found_again_in_the_text():
    text, spans = written(["", "a", " or ", "b", "?"], {"a": "this", "b": "that"})
    assert (text, [text[start:end] for start, end in spans]) == ("this or that?", ["this", "that"])


@pytest.mark.parametrize(
    ("text", "spacings", "last"),
    [
        ("{a} {mask}", [True], True),
        ("{a}\n{mask}.", [False], True),
        ("{a}{mask}", [False, True], True),
        ("{mask}: {a}", [False], False),
    ],
)
def test_what_stands_before_the_blank(text, spacings, last):
    assert (Pattern(text).spacings, Pattern(text).blank_last) == (spacings, last)
