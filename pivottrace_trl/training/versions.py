"""Supported versions of the libraries whose private names we use."""

from importlib.metadata import version

from packaging.specifiers import SpecifierSet
from packaging.version import Version


# Newer ones than what was tested are judged by the private names that they have, and not by their number.
TRL_VERSIONS = SpecifierSet(">=1.14")
TESTED = Version("1.16.0")


def installed(package: str) -> str:
    """
    Installed version of a package.

    Args:
        package (`str`): its name.

    Returns:
        `str`
    """
    return version(package)


def is_newer_than_tested() -> bool:
    """Whether the installed TRL is a later minor version than the newest that the suite was run with."""
    return Version(installed("trl")).release[:2] > TESTED.release[:2]


def check_versions() -> None:
    """
    Check that the installed TRL is not older than what we need.

    Raises:
        ImportError: if it is.
    """
    found = installed("trl")
    if not TRL_VERSIONS.contains(found, prereleases=True):
        raise ImportError(
            f"pivottrace-trl needs trl {TRL_VERSIONS}, but {found} is installed. "
            f'Install a newer one: pip install "trl{TRL_VERSIONS}".'
        )
