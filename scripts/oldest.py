"""
Pin every requirement of the package to the oldest version that setup.py allows, as constraints for pip:

    python scripts/oldest.py > constraints.txt

setup.py stays the only place that states a bound. torch is left out: scripts/install.sh chooses its build.
"""

import ast
import re
from pathlib import Path


def oldest_versions(setup: str) -> list[str]:
    """
    Turn lower bounds into pins.

    Args:
        setup (`str`):
            Source of a setup.py that calls `setup` with literal requirements.

    Returns:
        `list[str]`: one `name==version` for each requirement of the package itself that has a lower bound, torch
        excepted.
    """
    calls = [node for node in ast.walk(ast.parse(setup)) if isinstance(node, ast.Call)]
    keywords = [keyword for call in calls for keyword in call.keywords]
    (requirements,) = [keyword.value for keyword in keywords if keyword.arg == "install_requires"]
    bounds = [re.match(r"([\w-]+)>=([\w.]+)", requirement) for requirement in ast.literal_eval(requirements)]
    return [f"{bound[1]}=={bound[2]}" for bound in bounds if bound and bound[1] != "torch"]


if __name__ == "__main__":
    print("\n".join(oldest_versions((Path(__file__).parent.parent / "setup.py").read_text())))  # noqa: T201
