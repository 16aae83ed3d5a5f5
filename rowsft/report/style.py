"""One colour and one marker a method, the same in every picture, in Okabe and Ito's colour-blind safe palette."""

LOOKS = {
    "none": ("#7f7f7f", "x"),
    "head": ("#7f7f7f", "P"),
    "row_sft": ("#D55E00", "o"),
    "lora": ("#0072B2", "s"),
    "dora": ("#56B4E9", "D"),
    "full": ("#009E73", "^"),
}
_SPARE = [("#CC79A7", "v"), ("#E69F00", "<"), ("#882255", ">"), ("#999933", "h")]


def look(method: str, methods: list[str]) -> tuple[str, str]:
    """(colour, matplotlib marker) of a method; unknown ones share out the spare looks in the order of `methods`."""
    unknown = sorted({name for name in methods if name not in LOOKS})
    return LOOKS[method] if method in LOOKS else _SPARE[unknown.index(method) % len(_SPARE)]
