"""Fill docs/reference.md with every public name of the root and of the rooms. `mkdocs build` runs this as a hook."""

import importlib
from pathlib import Path

import pivottrace_trl


def on_page_markdown(markdown, page, **_):
    if page.file.src_uri != "reference.md":
        return markdown
    files = Path(pivottrace_trl.__file__).parent.glob("*/__init__.py")
    rooms = sorted(file.parent.name for file in files if "__all__" in file.read_text())
    for package in ["pivottrace_trl", *(f"pivottrace_trl.{room}" for room in rooms)]:
        names = importlib.import_module(package).__all__
        if package != "pivottrace_trl":
            names = [name for name in names if name not in pivottrace_trl.__all__]
        if names:
            markdown += f"\n## `{package}`\n" + "".join(f"\n::: {package}.{name}\n" for name in names)
    return markdown
