"""What mkdocs does beyond Markdown: pages from outside docs/, links between them, keys of conf/, formulas as MathML.

Files are written to be read in the repository, too: links are relative to the file, formulas stand between dollars.
"""

import posixpath
import re
import sys
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

sys.path.insert(0, str(Path(__file__).parent))
from config_reference import reference  # noqa: E402

ROOT = Path(__file__).parents[2]
#: Page of the site -> the file of the repository that it is, for files outside docs/.
OUTSIDE = {
    "contributing.md": "CONTRIBUTING.md",
    "log.md": "LOG.md",
    **{
        f"benchmarks/{path.parent.name}.md": path.relative_to(ROOT).as_posix()
        for path in sorted((ROOT / "benchmarks/results").glob("*/README.md"))
    },
}
#: A line of docs/configuration.md; the repository's reader finds a link to conf/ there.
KEYS = "<!-- The site has every key of conf/ here. -->"
#: Fenced blocks, indented blocks, code spans.
_CODE = re.compile(
    r"^ {0,3}(?P<fence>```+|~~~+).*?^ {0,3}(?P=fence)[ ]*$"
    r"|(?:^(?: {4}|\t)[^\n]*\n?)+"
    r"|(?P<span>`+)(?!`).+?(?<!`)(?P=span)(?!`)",
    re.DOTALL | re.MULTILINE,
)
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
_FORMULA = re.compile(r"\$\$(.+?)\$\$|\$([^$\n]+?)\$", re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that lie outside docs/."""
    for page, source in OUTSIDE.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put in the configuration's keys, point links at pages of the site, write formulas as MathML."""
    place = page.file.src_uri
    markdown = markdown.replace(KEYS, reference(ROOT / "conf"))
    return _outside_code(markdown, lambda text: _formulas(_LINK.sub(lambda link: _link(link, place), text)))


def _outside_code(markdown: str, change) -> str:
    parts, end = [], 0
    for code in _CODE.finditer(markdown):
        parts += [change(markdown[end : code.start()]), code[0]]
        end = code.end()
    return "".join([*parts, change(markdown[end:])])


def _formulas(text: str) -> str:
    return _FORMULA.sub(_formula, text)


def _formula(match: re.Match) -> str:
    block, inline = match.groups()
    if block:
        return convert(block, display="block")
    # Markdown takes a line that begins with an element it does not know for a block; span it knows.
    return f"<span>{convert(inline)}</span>"


def _link(link: re.Match, place: str) -> str:
    """The link as the site has it; the text alone for a file of the repository that is no page."""
    image, text, target = link.groups()
    path, mark, anchor = target.partition("#")
    if not path or re.match(r"[a-z]+:", path):
        return link[0]
    folder = posixpath.dirname(OUTSIDE.get(place, f"docs/{place}"))
    source = posixpath.normpath(posixpath.join(folder, path))
    pages = {name: page for page, name in OUTSIDE.items()}
    # A folder of the repository stands for its README.
    page = pages.get(source) or pages.get(f"{source}/README.md")
    if page is None and source.startswith("docs/"):
        page = source.removeprefix("docs/")
    if page is None:
        return text
    return f"{image}[{text}]({posixpath.relpath(page, posixpath.dirname(place) or '.')}{mark}{anchor})"
