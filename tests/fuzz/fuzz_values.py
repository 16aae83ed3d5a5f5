"""Odd values, keys and texts, drawn by a seeded generator."""

import random
import string

# Values as a shell hands them over: in Hydra's grammar and out of it.
VALUES = (
    *("", " ", "null", "true", "false", "x", "0", "1", "-1", "2", "3.5", "-0.0", "1e3", "1e400", "nan", "inf", "-inf"),
    *(str(10**30), str(-(10**19)), str(2**63), "007", "1.10", "1_000", "0x10", ".5", "5.", "1e-400", "02116"),
    *("[]", "[1]", "[1,[2]]", "[a,b]", "['a','b']", "{}", "{a:1}", "{a:{b:[1]}}", "{1:2}", "{a:1", "[1", "a]", "}"),
    *("[" * 150 + "]" * 150, "{a:" * 120 + "1" + "}" * 120, "x" * 300, "[" + "1," * 5000 + "1]", "9" * 5000),
    *("'quoted'", '"double"', "'half", '"half', "it's", 'say "x"', r"back\slash", r"\'", "a:b", "a=b", "a b  c"),
    *(
        "a,b",
        "1,2,3",
        ",",
        "a,",
        "choice(a,b)",
        "range(1,3)",
        "range(3)",
        "interval(0,1)",
        "glob(*)",
        "sort(1,2)",
        "f(",
    ),
    *("${seed}", "${nope}", "x${method}", "${oc.env:NOT_SET}", "${oc.env:NOT_SET,x}", "${nope:1}", "${", "${}", "???"),
    *("${model}", "${.}", "${..seed}", "$seed", "${oc.decode:x}", "${hydra:job}", "${oc.create:{a:1}}", "${a.b.c}"),
    *("~", "~/x", "~nobody/x", "/dev/null", "/dev/null/x", "/", ".", "..", "../../x", "package:nope", "a//b", "*", "?"),
    *(
        "ä€",
        "日本語",
        "\u202eabc",
        "\u200b",
        "a\nb",
        "a\tb",
        "\x1b[31mred",
        "\r",
        "a\x7fb",
        "\U0001f600",
        "ﬁ",
        "\udcff",
    ),
    *("cpu", "cuda", "taylor", "lowest(taylor)", "labelwise(taylor,max)", "lora", "bf16", "accuracy", "validation"),
    *(
        "=",
        "==",
        "-",
        "--",
        "---",
        "@",
        "#",
        "%s",
        "{0}",
        "{prompt}",
        "Q: {prompt}",
        "{prompt",
        "<b>x</b>",
        "[/x]",
        "a;b",
    ),
    *("__import__('os')", "!!python/object:x", "&a", "*a", "|", ">", "a: b", "- a", "yes", "no", "on", "None", "~null"),
)
GROUPS = ("method", "model", "task", "budget", "trainer", "tracker", "experiment", "debug", "hydra")
ALPHABET = string.ascii_letters + string.digits + " =,.:;'\"[]{}()+~@$#%&*?/\\|<>!-_\t\n\0äß€中\u202e\x1b"


def value(draw: random.Random) -> str:
    """An odd value; one in eight is noise."""
    return draw.choice(VALUES) if draw.random() < 0.875 else noise(draw)


def noise(draw: random.Random, most: int = 40) -> str:
    """Characters without any meaning; no zero byte, which no command line can hold."""
    return "".join(draw.choice(ALPHABET) for _ in range(draw.randint(0, most))).replace("\0", "")


def misspelt(draw: random.Random, text: str) -> str:
    """`text` with one character gone, doubled or exchanged."""
    if not text:
        return "x"
    place = draw.randrange(len(text))
    return text[:place] + draw.choice(["", text[place] * 2, draw.choice("xyz_.-")]) + text[place + 1 :]
