"""Which number a text comes to, in the ways that people and models write it."""

from fractions import Fraction

import pytest

from rowsft.tasks.final_number import final_number

HARD = [
    # GSM8K's mark.
    ("She makes 9 * 2 = $<<9*2=18>>18 a day.\n#### 18", "18"),
    ("#### 70,000", "70000"),
    ("####-5", "-5"),
    ("#### $1,234.50 dollars", "1234.5"),
    ("#### 18 dollars for 3 people", "18"),
    ("#### 3 + 4 = 7", "7"),
    ("#### 18\nQuestion: what is 5?\nAnswer: 5\n#### 5", "18"),
    ("####\n18", "18"),
    ("First 16 - 3 = 13.\n#### none", None),
    ("First 16 - 3 = 13.\n####", None),
    # The answer is.
    ("The answer is 18.", "18"),
    ("So 3 of 5. The final answer is: $18", "18"),
    ("**Answer:** 18 eggs in 2 days", "18"),
    ("The answer is 7. It was 5 before.", "7"),
    ("The answer is 5. No, the answer is 6.", "6"),
    ("The answer is 3 + 4 = 7", "7"),
    ("the answer is x = -7", "-7"),
    ("The answer is 7 because x = 3", "7"),
    ("The answer is eighteen, not 17", "17"),
    ("The answer is eighteen.\nThat was 17 times.", None),
    ("the answers are 3 and 4", "4"),
    # LaTeX.
    (r"So $2 + 2$ makes \boxed{4}.", "4"),
    (r"\boxed{3} no, \boxed{\$1{,}200}", "1200"),
    (r"\boxed{\frac{3}{4}}", "0.75"),
    (r"\boxed{-\dfrac{1}{3}}", "-1/3"),
    (r"\boxed{1\frac{1}{2}}", "1.5"),
    (r"\boxed{5 \text{ apples in } 2 days}", "5"),
    (r"\boxed{x = 12\%}", "12"),
    (r"\boxed{1\,000}", "1000"),
    (r"\boxed{2 \times 10^{3}}", "2000"),
    (r"\boxed{18", "18"),
    # Commas, spaces and points.
    ("It costs 1,234,567 in all", "1234567"),
    ("It costs 1 234 567", "1234567"),
    ("It costs 1\u202f234\u00a0567", "1234567"),
    ("in 2020 300 people", "300"),
    ("3, 4 and 5, 6", "6"),
    ("either 3,5", "5"),
    ("exactly 18.", "18"),
    ("exactly 18.50.", "18.5"),
    ("18.00", "18"),
    ("half is .5", "0.5"),
    ("1,234.5", "1234.5"),
    ("007", "7"),
    ("1,2345", "2345"),
    # Signs.
    ("-5", "-5"),
    ("\u22125", "-5"),
    ("it fell by \u20135", "-5"),
    ("-$5", "-5"),
    ("$-5", "-5"),
    ("10-5", "5"),
    ("5\u201310", "10"),
    ("(3)-2", "2"),
    ("- 5 apples", "5"),
    ("-0", "0"),
    ("-0.50", "-0.5"),
    # Units.
    ("$18", "18"),
    ("\u20ac 18", "18"),
    ("18 km", "18"),
    ("18km", "18"),
    ("50%", "50"),
    ("50 %", "50"),
    ("18 kg of CO2", "18"),
    ("25 m^2", "25"),
    ("25 m\u00b2", "25"),
    ("5 million", "5"),
    # Fractions and powers of ten.
    ("3/4 of it", "0.75"),
    ("1 1/2 cups", "1.5"),
    ("1\u00bd cups", "1.5"),
    ("\u2154", "2/3"),
    ("2/6", "1/3"),
    ("-3/4", "-0.75"),
    ("1/0", None),
    ("#### 4/0", None),
    ("#### 12,34,567", "1234567"),
    ("#### 1,23", None),
    ("#### 1,2345", None),
    ("#### 1, 2", "1"),
    ("#### 1\u20442", "0.5"),
    ("1.5e3", "1500"),
    ("1.5E-3", "0.0015"),
    ("1.5 x 10^3", "1500"),
    ("1.5 \u00d7 10^-2", "0.015"),
    # Nothing to read, and too much.
    ("", None),
    ("eighteen", None),
    ("x2 and CO2", None),
    ("1e999999999", None),
    ("9" * 5000, None),
    ("12 and " + "9" * 5000, None),
    ("\uff11\uff18", "18"),
]


@pytest.mark.parametrize(("text", "number"), HARD, ids=lambda value: repr(value)[:40])
def test_the_final_number_of_a_text(text, number):
    assert final_number(text) == number


@pytest.mark.parametrize("value", [Fraction(n, d) for n in (0, 1, 7, -30, 1001) for d in (1, 2, 3, 8, 40, 125, 7)])
def test_every_form_of_a_number_comes_to_one(value):
    written = final_number(f"{value.numerator}/{value.denominator}")
    assert Fraction(written) == value
    assert final_number(written) == written
    # The shortest form: no zero at the end of decimals, no point after whole numbers.
    assert "." not in written or written[-1] not in "0."


def test_reading_takes_time_in_proportion_to_the_text():
    """Expressions that go back over what they have read would take minutes here."""
    for piece in ("1,", "1 ", "<<", "answer ", "####", "\\boxed{", "1/", "=", "-", "1.", "{"):
        final_number(piece * 20_000)
