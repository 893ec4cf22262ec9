"""
Take the screenshots of the desk in docs/images, from a short run of the embedded demo model.

    python scripts/desk_screenshots.py --output docs/images
"""

import argparse
import re
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path

from playwright.sync_api import sync_playwright
from transformers import TrainerCallback

from pivottrace_trl import AnnotationLedger, Answer, PivotDensityCallback
from pivottrace_trl.demo.arithmetic import make_pool, work_out
from pivottrace_trl.demo.arm import Size
from pivottrace_trl.demo.trainer import make_trainer


class Answers(TrainerCallback):
    """A script that answers two thirds of what is asked, each epoch."""

    def __init__(self, path: Path):
        self._path = path

    def on_epoch_end(self, args, state, control, **kwargs):
        with closing(AnnotationLedger.open(self._path)) as ledger:
            queue = ledger.queue()
            for query in queue[: len(queue) * 2 // 3]:
                ledger.record([Answer(query.prompt_id, {"solution": work_out(str(query.prompt))[1]}, "ann")])


def train(folder: Path) -> None:
    """Three epochs, with somebody who answers."""
    trainer = make_trainer(make_pool(128, seed=0).remove_columns("solution"), folder, seed=0, size=Size(max_steps=48))
    callback = PivotDensityCallback(trainer, annotator="queue")
    trainer.add_callback(callback)
    trainer.add_callback(Answers(callback.output_dir / "ledger.sqlite"))
    trainer.train()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("docs/images"))
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        train(folder)
        command = [sys.executable, "-m", "pivottrace_trl", "desk", name, "--show-attempts", "--author", "bob"]
        server = subprocess.Popen([*command, "--port", "7871"], stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout is not None
            addresses = (re.search(r"The desk is at (\S+)", line) for line in server.stdout)
            address = next(found[1] for found in addresses if found)
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=args.chromium, args=["--no-sandbox"])
                page = browser.new_page(viewport={"width": 1100, "height": 640}, device_scale_factor=1.5)
                for _ in range(100):
                    try:
                        page.goto(address)
                        break
                    except Exception:
                        page.wait_for_timeout(200)
                page.wait_for_function("document.querySelector('#prompt')?.textContent.includes('?')")
                page.wait_for_function("document.activeElement.closest('#answer') !== null")
                answer = int(work_out(page.inner_text("#prompt").strip())[1])
                page.keyboard.type(rf"\frac{{{2 * answer}}}{{2}}")
                page.wait_for_function("document.querySelector('#reading')?.textContent.includes('reads as')")
                page.screenshot(path=args.output / "desk_answer.png")
                page.get_by_text("Run", exact=True).click()
                page.wait_for_function("document.querySelectorAll('#picture img').length >= 4")
                page.screenshot(path=args.output / "desk_run.png", full_page=True)
                browser.close()
        finally:
            server.kill()


if __name__ == "__main__":
    main()
