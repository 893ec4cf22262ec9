"""Supported versions of the libraries we reach into."""

from importlib.metadata import version

from packaging.specifiers import SpecifierSet


TRL_VERSIONS = SpecifierSet(">=1.14,<1.17")


def installed(package: str) -> str:
    """
    Installed version of a package.

    Args:
        package (`str`): its name.

    Returns:
        `str`
    """
    return version(package)


def check_versions() -> None:
    """
    Check that the installed TRL is one we were tested with.

    Raises:
        ImportError: if it is not.
    """
    found = installed("trl")
    if not TRL_VERSIONS.contains(found, prereleases=True):
        raise ImportError(
            f"pivottrace-trl supports trl {TRL_VERSIONS}, but {found} is installed. "
            f'Install a supported one: pip install "trl{TRL_VERSIONS}".'
        )
