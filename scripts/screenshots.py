"""
Take pictures of pages as people see them: at the width of a desktop and of a phone, light and dark.

    make docs
    python scripts/screenshots.py README.md site/index.html site/guide/index.html runs/report/index.html --output shots

A Markdown file is rendered about as GitHub does. `--full` takes the whole page instead of its first screen.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

from markdown import markdown
from playwright.sync_api import Route, sync_playwright


WIDTHS = {1280: 900, 390: 844}  # and heights
SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
ADDRESS = "http://localhost"  # pages of file:// have no search; what is asked of this is read from the disk
GITHUB = """<meta charset="utf-8">
<meta name="viewport" content="width=device-width"><meta name="color-scheme" content="light dark"><style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 896px; margin: 32px auto; padding: 0 16px;
       background: light-dark(#fff, #0d1117); color: light-dark(#1f2328, #f0f6fc); }
a { color: light-dark(#0969da, #4493f8); } img { max-width: 100%; background: #fff; }
h1, h2 { border-bottom: 1px solid light-dark(#d1d9e0b3, #3d444db3); padding-bottom: .3em; }
pre, code { font: 13.6px/1.45 monospace; background: light-dark(#f6f8fa, #151b23); border-radius: 6px; }
pre { padding: 16px; overflow: auto; } code { padding: .2em .4em; } pre code { padding: 0; }
table { display: block; overflow: auto; border-collapse: collapse; }
td, th { border: 1px solid light-dark(#d1d9e0, #3d444d); padding: 6px 13px; }</style>"""


def name_of(page: Path) -> str:
    """`README`, `guide` for `site/guide/index.html`."""
    return page.resolve().parent.name if page.stem == "index" else page.stem


def render(page: Path, folder: Path) -> Path:
    """A page that a browser can show; pictures of a Markdown file are found beside it."""
    if page.suffix != ".md":
        return page.resolve()
    base = f'<base href="{ADDRESS}{page.resolve().parent}/">'
    rendered = folder / f"{page.stem}.html"
    rendered.write_text(GITHUB + base + markdown(page.read_text(), extensions=["tables", "fenced_code"]))
    return rendered


def answer(route: Route) -> None:
    path = Path(unquote(urlsplit(route.request.url).path))
    path = path / "index.html" if path.is_dir() else path
    if path.is_file():
        route.fulfill(path=path)
    else:
        route.abort()


def take(pages: Sequence[Path], output: Path, chromium: str, full: bool) -> list[Path]:
    """One picture for each page, width and scheme; returns their paths."""
    output.mkdir(parents=True, exist_ok=True)
    taken = []
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for width, height in WIDTHS.items():
            for scheme in SCHEMES:
                context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
                context.route("**/*", answer)
                tab = context.new_page()
                for page in pages:
                    tab.goto(f"{ADDRESS}{render(page, Path(folder))}", wait_until="load")
                    overflow = tab.evaluate("document.documentElement.scrollWidth - window.innerWidth")
                    if overflow > 0:
                        print(f"{page} is {overflow} px wider than {width} px")
                    taken.append(output / f"{name_of(page)}-{width}-{scheme}.png")
                    tab.screenshot(path=taken[-1], full_page=full)
                context.close()
        browser.close()
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", type=Path, nargs="+", help="HTML or Markdown files")
    parser.add_argument("--output", type=Path, default=Path("shots"))
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    parser.add_argument("--full", action="store_true", help="the whole page")
    args = parser.parse_args()
    for path in take(args.pages, args.output, args.chromium, args.full):
        print(path)


if __name__ == "__main__":
    main()
