"""
A hook of `mkdocs build`. It fills the pages of the reference with every public name, the callback first; shows cross
references as links, not as markup; and puts in the address of the repository, which stands in setup.py.
"""

import importlib
import re
from pathlib import Path

import pivottrace_trl


ROOT = Path(__file__).parent.parent
REPOSITORY = re.findall(r'^repository = "(.+)"', (ROOT / "setup.py").read_text(), re.MULTILINE)[0]
PAGES = ("reference.md", "reference_rooms.md")


def on_config(config):
    config.repo_url, config.repo_name = REPOSITORY, "Repository"
    return config


def names_of(page: str) -> dict[str, list[str]]:
    """Package to the names that a page of the reference shows, those of the root in the order of docs/api.md."""
    root = set(pivottrace_trl.__all__)
    if page == "reference.md":
        listed = re.findall(r"^\| `(\w+)` \|", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE)
        return {"pivottrace_trl": [name for name in listed if name in root]}
    files = (ROOT / "pivottrace_trl").glob("*/__init__.py")
    rooms = sorted(f"pivottrace_trl.{file.parent.name}" for file in files if "__all__" in file.read_text())
    names = {room: [name for name in importlib.import_module(room).__all__ if name not in root] for room in rooms}
    return {room: found for room, found in names.items() if found}


def on_page_markdown(markdown, page, **_):
    markdown = markdown.replace("git+REPOSITORY", f"git+{REPOSITORY}")
    if page.file.src_uri in PAGES:
        for package, names in names_of(page.file.src_uri).items():
            markdown += "" if package == "pivottrace_trl" else f"\n## `{package}`\n"
            markdown += "".join(f"\n::: {package}.{name}\n" for name in names)
    return markdown


def on_page_content(html, page, **_):
    """Docstrings are in TRL's form, [`Name`]; mkdocstrings leaves these as they are."""
    if page.file.src_uri not in PAGES:
        return html
    places = {
        name: f"../{uri.removesuffix('.md')}/#{package}.{name}"
        for uri in PAGES
        for package, names in names_of(uri).items()
        for name in names
    }

    def link(match) -> str:
        name = match[1].split(".")[-1]
        return f'<a href="{places[name]}">{name}</a>' if name in places else name

    html = re.sub(r"\[<code>~?([\w.]+)</code>\]", lambda m: f"<code>{link(m)}</code>", html)
    html = re.sub(r"\[`~?([\w.]+)`\]", link, html)
    # Types stand in one <code>, with marks of their own inside; the signature tells what is optional, and its default.
    code = r"<code>[^<]*(?:<a[^>]*>\w+</a>[^<]*)*</code>"
    html = re.sub(
        code, lambda m: re.sub(r",? \*optional\*(, defaults to .*(?=</code>))?", "", m[0]).replace("`", ""), html
    )
    return html
