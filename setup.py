"""Package metadata. Tool settings are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup


root = Path(__file__).parent
# THIS_ACCOUNT stands for whoever publishes this: README, notebook and site name the same address.
repository = "https://github.com/THIS_ACCOUNT/pivottrace-trl"
version = re.search(r'__version__ = "(.+?)"', (root / "pivottrace_trl" / "__init__.py").read_text()).group(1)
# The package index knows no other file of the repository.
readme = (root / "README.md").read_text(encoding="utf-8")
readme = re.sub(r"(!\[[^]]*\]\()(?!https?:|#)", rf"\1{repository}/raw/main/", readme)
readme = re.sub(r"(\]\()(?!https?:|#)", rf"\1{repository}/blob/main/", readme)

setup(
    name="pivottrace-trl",
    version=version,
    description="Pick the prompts that deserve a label: PivotTrace as a plugin for TRL's GRPOTrainer",
    long_description=readme,
    long_description_content_type="text/markdown",
    url=repository,
    license="Apache-2.0",
    license_files=["LICENSE"],
    packages=find_packages(include=["pivottrace_trl", "pivottrace_trl.*"]),
    package_data={"": ["*.pyi"], "pivottrace_trl": ["py.typed", "demo/model/*", "labels/*.j2", "report/*.j2"]},
    python_requires=">=3.10,<3.14",
    install_requires=[
        "torch>=2.6",
        "trl>=1.14",
        "transformers>=5.6",
        "peft>=0.20",
        "accelerate>=1.10.1",
        "datasets>=4.7",
        "evaluate>=0.4.6",
        "math-verify>=0.9",
        'bitsandbytes>=0.49; platform_system == "Linux" or platform_system == "Windows"',
        "numpy>=1.26",
        "pyarrow>=21",
        "matplotlib>=3.9",
        "scikit-learn>=1.4",
        "scipy>=1.11.1",
        "rich>=13",
        "jinja2>=3.1",
        "lazy_loader>=0.4",
        "packaging",
        "psutil",
    ],
    extras_require={
        "desk": ["gradio>=6"],
        "docs": ["mkdocs-material>=9.6", "mkdocstrings-python>=1.16"],
        "endpoint": ["openai>=2"],
        "test": [
            "gradio>=6",
            "hypothesis>=6.100",
            "ipykernel>=6.29",
            "mkdocs-material>=9.6",
            "mkdocstrings-python>=1.16",
            "mypy==2.4.1",
            "nbclient>=0.10",
            "openai>=2",
            "playwright>=1.50",
            "pytest>=8",
            "pytest-xdist>=3.6",
            "ruff==0.17.6",
            "setuptools>=77",
            "trackio>=0.43",
            "wandb>=0.31",
        ],
    },
    entry_points={"console_scripts": ["pivottrace=pivottrace_trl.cli:main"]},
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
