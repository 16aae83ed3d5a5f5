"""Which answer a text names first: hard cases by hand, and a search that tries every place of the text."""

import random

import pytest

from rowsft.tasks.answer_words import fault, first_named

ANSWERS = ["answer1", "answer2", "answer10"]
TRUTH = ["false", "true"]
CASES = [
    ("the correct answer is answer2", ANSWERS, 1),
    ("answer10 and not answer1", ANSWERS, 2),
    ("answer1 0", ANSWERS, 0),
    ("answer100, or answer12", ANSWERS, None),
    ("Answer2. Then answer1", ANSWERS, 1),
    ("(ANSWER1)", ANSWERS, 0),
    ("answer1/answer2", ANSWERS, 0),
    ("**answer2**", ANSWERS, 1),
    ("answer_1 answer1_ _answer1", ANSWERS, None),
    ("answer 1", ANSWERS, None),
    # Numbers inside of numbers.
    ("It is 2.5", ["1", "5"], None),
    ("-4", ["4", "5"], None),
    ("\u22124, not 5", ["4", "5"], 1),
    ("1,234", ["234", "1"], None),
    ("1/2 of 12:30", ["1", "2", "12", "30"], None),
    ("it is 4.", ["4", "5"], 0),
    ("4, then 5", ["5", "4"], 1),
    ("3-4", ["4", "5"], 0),
    ("($5)", ["4", "5"], 1),
    # Combining marks, contractions, names with signs.
    ("\u0939\u093f\u0928\u094d\u0926\u0940", ["\u0939\u093f\u0928\u094d\u0926", "no"], None),
    ("cafe\u0301 noir", ["cafe", "tea"], None),
    ("cafe\u0301 noir", ["caf\u00e9", "tea"], 0),
    ("I can't, no", ["can", "no"], 1),
    ("Paris's and Rome\u2019s", ["Rome", "Paris"], 1),
    ("C++", ["C", "Java"], None),
    ("C++ it is", ["C", "C++"], 1),
    ("", ANSWERS, None),
    ("   \n", ANSWERS, None),
    ("a falsehood, untrue", TRUTH, None),
    ("a falsehood is not true", TRUTH, 1),
    ("false: it is true", TRUTH, 0),
    ("True\nFalse", TRUTH, 1),
    ("it isn't 'false'!", TRUTH, 0),
    # The longest of those that begin at one place, whichever stands first in the list.
    ("New York City", ["new york", "new york city", "york"], 1),
    ("new   york\ncity", ["new york", "new york city", "york"], 1),
    ("new yorkers", ["new york", "new"], 1),
    ("old york", ["new york", "york"], 1),
    # Marks are of an answer where it has them, and are nothing else.
    ("it is a.b", ["a*b", "a.b"], 1),
    ("axb", ["a.b", "b"], None),
    ("C++", ["c", "c++"], 1),
    ("the \u00c9cole", ["\u00e9cole", "cole"], 0),
    ("STRASSE", ["stra\u00dfe", "weg"], 0),
    (" yes", ["no", " yes "], 1),
    # Scripts that write no blanks between words: Chinese, Japanese, Thai, Lao, Burmese, and others beside them.
    ("答案是猫。", ["狗", "猫"], 1),
    ("正确答案是B，不是A", ["A", "B"], 1),
    ("选b吧", ["A", "B"], 1),
    ("答案是AB型", ["A", "B"], None),
    ("共有3个", ["3", "5"], 0),
    ("共有33个", ["3", "5"], None),
    ("共有2.5个", ["2", "5"], None),
    ("熊猫和猫", ["猫", "熊猫"], 1),
    ("二十", ["十", "二"], None),
    ("二十个", ["十", "二十"], 1),
    ("答えはネコです", ["イヌ", "ネコ"], 1),
    ("アメリカン", ["アメリカ", "no"], None),
    ("コーヒー", ["コ", "コーヒ"], None),
    ("คำตอบคือแมวครับ", ["หมา", "แมว"], 1),
    ("คำตอบคือBครับ", ["A", "B"], 1),
    # Not within a syllable: a vowel before, a vowel behind, a mark above.
    ("ไกกากิ", ["ก", "no"], None),
    ("คือกข", ["ก", "no"], 0),
    ("ຄຳຕອບແມ່ນແມວ", ["ໝາ", "ແມວ"], 1),
    ("အဖြေသည်ကြောင်", ["ကြောင်", "no"], 0),
    ("ကျ", ["က", "no"], None),
    # Korean writes blanks; an ending makes another word, Latin letters beside it do not.
    ("정답은 B입니다", ["A", "B"], 1),
    ("한국어", ["한국", "no"], None),
    # Greek and Cyrillic beside Latin are words as ever.
    ("αA", ["A", "no"], None),
]


@pytest.mark.parametrize(("text", "answers", "named"), CASES)
def test_the_first_whole_word_counts(text, answers, named):
    assert first_named(text, answers) == named


def is_of_a_number(left, right, first, last):
    """Whether what stands between `left` and `right`, with these first and last characters, is a part of a number."""
    if first.isdigit() and left and left[-1] in ".,:/-":
        digit_before = len(left) > 1 and left[-2].isdigit()
        if (digit_before and left[-1] != "-") or (not digit_before and left[-1] in "-."):
            return True
    return last.isdigit() and len(right) > 1 and right[0] in ".,:/" and right[1].isdigit()


def every_place(text, answers):
    """The same by trying all answers at all places."""
    text, answers = (" ".join(one.lower().split()) for one in [text]), [" ".join(a.lower().split()) for a in answers]
    (text,) = text
    for start in range(len(text)):
        if start and (text[start - 1].isalnum() or text[start - 1] == "_"):
            continue
        best = None
        for number, answer in enumerate(answers):
            end = start + len(answer)
            whole = end >= len(text) or not (text[end].isalnum() or text[end] == "_")
            whole = whole and not is_of_a_number(text[:start], text[end:], answer[0], answer[-1])
            if text[start:end] == answer and whole and (best is None or len(answer) > len(answers[best])):
                best = number
        if best is not None:
            return best
    return None


def test_every_text_of_a_few_pieces_is_read_as_by_trying_all_places():
    draw, pieces = random.Random(0), ["a", "b", "A", "1", "10", "_", " ", "  ", ".", "a1", "b a", "\n", "-"]
    named = []
    for _ in range(5000):
        answers = list(dict.fromkeys(draw.choices(["a", "a1", "a10", "b", "b a", "b a1", "a-b", "1"], k=3)))
        text = "".join(draw.choices(pieces, k=draw.randrange(8)))
        found = first_named(text, answers)
        assert found == every_place(text, answers), (text, answers)
        named.append(found)
    assert {None, 0, 1, 2} == set(named)


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        (["yes", "no"], None),
        (["answer1", "answer10"], None),
        (["yes", " \n"], "option 2 is empty: no text can name it"),
        (["to go", "no", "To  go"], "options 1 and 3 are the same words (To go): no text can name one of them alone"),
    ],
)
def test_answers_that_cannot_be_told_apart_are_found(answers, said):
    assert fault(answers) == said
