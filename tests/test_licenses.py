"""LICENSES.md lists every shipped file and every direct dependency, with the license of its metadata."""

import importlib.metadata
import pathlib
import re
import subprocess
import tomllib

import pytest

from tests.helpers import ROOT

TEXT = (ROOT / "LICENSES.md").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# Names in License-Expression, License and classifiers of metadata, and the names that LICENSES.md uses.
SPELLINGS = {
    "Apache": "Apache-2.0",
    "Apache 2.0": "Apache-2.0",
    "Apache 2.0 License": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "BSD License": "BSD-3-Clause",
    "MIT License": "MIT",
    "Python Software Foundation License": "PSF-based",
}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def rows(title: str) -> list[list[str]]:
    """Return the cells of the table under a heading."""
    lines = TEXT.partition(f"## {title}\n")[2].partition("\n## ")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")][1:]


LISTED = {normal(name): (license, extras) for name, license, extras in rows("Direct dependencies")}
EXTRAS = PROJECT["optional-dependencies"] | {"all": PROJECT["dependencies"]}
DIRECT: dict[str, set[str]] = {}  # package -> extras
for extra, requirements in EXTRAS.items():
    for requirement in requirements:
        DIRECT.setdefault(normal(re.match(r"[\w.-]+", requirement)[0]), set()).add(extra)
DIRECT.pop("revelio-jax")


def test_every_direct_dependency_is_listed_and_no_other():
    assert set(LISTED) == set(DIRECT)
    for name, (_, extras) in LISTED.items():
        assert set(extras.split(", ")) - {"build"} <= DIRECT[name], name


@pytest.mark.parametrize("name", sorted(DIRECT))
def test_the_listed_license_is_that_of_the_installed_package(name):
    try:
        metadata = importlib.metadata.metadata(name)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip(f"{name} is not installed")
    classifiers = [each.rpartition(" :: ")[2] for each in metadata.get_all("Classifier") or [] if "License ::" in each]
    short = [text for text in (metadata["License-Expression"], metadata["License"]) if text and len(text) < 120]
    found = (short or classifiers)[0]
    parts = re.split(r" AND | OR ", found)
    for part in (SPELLINGS.get(part, part).partition(" WITH ")[0] for part in parts):
        assert part in LISTED[name][0], f"{name} has the license {found}"


def test_every_shipped_file_has_a_license():
    listed = ["git", "-C", str(ROOT), "ls-files", "configs", "extract", "revelio_jax"]
    files = [pathlib.PurePath(line) for line in subprocess.check_output(listed, text=True).splitlines()]
    code = {".py", ".js", ".html", ".css", ".typed"}
    others = [file for file in files if file.suffix not in code]
    assert others
    for file in others:
        assert file.parent.parts[:2] == ("extract", "miniature"), file
        assert file.parts[2] in ("sd", "flux"), file
        assert file.suffix in (".csv", ".json", ".md", ".safetensors"), f"{file}: no image, font or archive is listed"
    for name in ("sd", "flux"):
        card = (ROOT / "extract" / "miniature" / name / "README.md").read_text()
        assert card.startswith("---\nlicense: cc-by-4.0\n")


def test_the_project_names_both_licenses():
    assert PROJECT["license"] == "Apache-2.0 AND CC-BY-4.0"
    assert PROJECT["license-files"] == ["LICENSE", "LICENSES.md"]
