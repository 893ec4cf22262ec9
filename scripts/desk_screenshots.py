"""
Take the screenshots of the desk in docs/images, from a short run of the embedded demo model.

    python scripts/desk_screenshots.py --output docs/images
"""

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from pivottrace_trl import AnnotationLedger, Answer, PivotDensityCallback
from pivottrace_trl.demo.arithmetic import make_pool, work_out
from pivottrace_trl.demo.run import make_trainer


def train(folder: Path) -> None:
    """Three epochs in which a script answers most of what is asked."""
    trainer = make_trainer(make_pool(128, seed=0).remove_columns("solution"), folder, seed=0, max_steps=48)
    callback = PivotDensityCallback(trainer, annotator="queue")
    trainer.add_callback(callback)
    route = callback.router.route

    def answer_and_route(epoch: int, buy: bool = True):
        ledger = AnnotationLedger.open(callback.ledger.path)
        queue = ledger.queue()
        for query in queue[: len(queue) * 2 // 3]:
            ledger.record([Answer(query.prompt_id, {"solution": work_out(query.prompt)[1]}, "ann")])
        ledger.close()
        return route(epoch, buy)

    callback.router.route = answer_and_route
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
            for line in server.stdout:
                if found := re.search(r"The desk is at (\S+)", line):
                    break
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(executable_path=args.chromium, args=["--no-sandbox"])
                page = browser.new_page(viewport={"width": 1100, "height": 640}, device_scale_factor=1.5)
                for _ in range(100):
                    try:
                        page.goto(found[1])
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
