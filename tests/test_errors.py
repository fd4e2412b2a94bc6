"""Words that several messages share."""

from __future__ import annotations

from paft_plugin.errors import PaftError, closest, collecting, did_you_mean, first_line, one_line


def test_a_misspelt_name_is_answered_with_the_closest_one() -> None:
    assert closest("wieght", ["weight", "height"]) == "weight"
    assert closest("wieght", ["weight"], likeness=0.9) is None
    assert did_you_mean("wieght", ["weight"]) == "Did you mean weight?"
    assert did_you_mean("x", ["weight"]) == ""
    assert did_you_mean("x", ["weight"], otherwise="Take weight.") == "Take weight."


def test_another_library_s_error_is_said_on_one_line() -> None:
    error = ValueError("  No such\n  device.\n\nSet X to see more.")
    assert one_line(error) == "No such device. Set X to see more."
    assert one_line(error, 7) == "No such …"
    assert first_line(error) == "No such"
    assert one_line(KeyError()) == first_line(KeyError()) == "KeyError"


def test_problems_of_several_steps_are_collected() -> None:
    problems = ["the first"]
    for said in (["the second", "the third"], ["the fourth"]):
        with collecting(problems):
            raise PaftError(said)
    assert problems == ["the first", "the second", "the third", "the fourth"]
