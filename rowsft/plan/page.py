"""Plans side by side on a page of their own, with a picture."""

import base64
from pathlib import Path

from jinja2 import Environment, PackageLoader, select_autoescape

from rowsft.plan.description import Description


def write(folder: Path, plans: Description, picture: bytes, command: str) -> Path:
    """Write index.html (self-contained) and memory.png into `folder`; returns the page."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.png").write_bytes(picture)
    environment = Environment(loader=PackageLoader("rowsft.plan", "."), autoescape=select_autoescape(["html", "j2"]))
    template = environment.get_template("page.html.j2")
    page = folder / "index.html"
    page.write_text(template.render(plans=plans, picture=base64.b64encode(picture).decode(), command=command))
    return page
