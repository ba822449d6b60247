"""requirements.lock: exact versions of every requirement of setup.cfg, within its bounds, from no named index."""

import configparser
import re

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.imports import ROOT

LOCKED_EXTRAS = ("train", "s3", "https", "ray", "dev")
LINES = [line for line in (ROOT / "requirements.lock").read_text().splitlines() if not line.startswith("#")]


def locked():
    found = {}
    for line in LINES:
        requirement = Requirement(line)
        (specifier,) = requirement.specifier
        assert specifier.operator == "==", line
        assert canonicalize_name(requirement.name) not in found, f"{requirement.name} is there twice"
        found[canonicalize_name(requirement.name)] = specifier.version
    return found


def direct():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    texts = [setup["options"]["install_requires"]]
    texts += [setup["options.extras_require"][extra] for extra in LOCKED_EXTRAS]
    lines = [line for text in texts for line in text.splitlines() if line.strip()]
    return [Requirement(line) for line in lines]


@pytest.mark.parametrize("requirement", direct(), ids=str)
def test_every_direct_requirement_is_locked_within_its_bounds(requirement):
    version = locked()[canonicalize_name(requirement.name)]
    assert requirement.specifier.contains(version, prereleases=True), f"{requirement}: the lock has {version}"


def test_the_lock_names_versions_only():
    """No index, host, path or local version (+cu130), with which others could not install it."""
    assert len(LINES) > 100
    for line in LINES:
        assert re.fullmatch(r'[A-Za-z0-9._-]+==[A-Za-z0-9.]+(; sys_platform == "linux")?', line), line
    assert not {"segloc", "detectron2", "pip"} & locked().keys()


def test_the_makefile_installs_the_extras_that_are_locked():
    makefile = (ROOT / "Makefile").read_text()
    assert f"LOCKED_EXTRAS := {','.join(LOCKED_EXTRAS)}\n" in makefile
    assert "--requirement requirements.lock" in makefile
