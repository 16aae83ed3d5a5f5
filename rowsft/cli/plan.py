"""`rowsft plan`: what a run would need, told without running it."""

import argparse

from rowsft.cli.arguments import add_config_folder, path
from rowsft.cli.terminal import without_warnings

HELP = "memory, FLOPs and time, without running"


def add_arguments(parser: argparse.ArgumentParser, groups: str | None) -> None:
    """Add the arguments of `rowsft plan`."""
    parser.epilog = groups
    parser.description = (
        "What `rowsft run` with the same overrides would need: parameters, bytes by part at the peak, FLOPs, which\n"
        "cards hold it. Needs no weights and no GPU. Plans for a GPU unless trainer.device=cpu."
    )
    parser.add_argument("overrides", nargs="*", metavar="group=name|key=value", help="Hydra overrides")
    parser.add_argument("--json", action="store_true", help="print JSON for programs; sizes in bytes")
    parser.add_argument(
        "--card", metavar="CARD", help="the card to fit: H100, RTX 4090, ... or a size it is sold as, 24"
    )
    parser.add_argument("--length", type=int, metavar="N", help="tokens of an example (default: those of the data)")
    parser.add_argument("--answer", type=int, metavar="N", help="how many of them are the response")
    parser.add_argument("--compare", action="store_true", help="every method at equal budget, and what the card holds")
    parser.add_argument("--sweep", metavar="KEY=A,B,...", help="peak against a setting, such as budget.rows=8,16,32")
    parser.add_argument("--out", type=path, help="folder for the page and picture of both (default: reports/plan)")
    add_config_folder(parser)


def run(parsed: argparse.Namespace) -> int:
    """Plan what the overrides describe and print it. Raises UserError for what cannot be planned."""
    from rowsft.config.compose import compose
    from rowsft.config.settings import trainer_settings

    # Wrong names are told before torch is imported.
    trainer_settings(compose(parsed.overrides))
    # What libraries warn of while a model is made concerns its weights and its code, and a plan has neither.
    with without_warnings():
        from rowsft.cli.plan_modes import print_plan

        return print_plan(parsed)
