"""NOTICE: every set that the small world takes something from, with its licence and what it is used for."""

from __future__ import annotations

from scripts.small_world.packages import PACKAGES

USES = {
    "train": "trained on",
    "held-out": "never trained on; some pictures are shipped",
    "test-only": "test only: never trained on, never shipped",
}
LICENCES = {
    "Apache-2.0": "https://www.apache.org/licenses/LICENSE-2.0",
    "CC-BY-4.0": "https://creativecommons.org/licenses/by/4.0/",
    "CC-BY-SA-4.0": "https://creativecommons.org/licenses/by-sa/4.0/",
    "CC0-1.0": "https://creativecommons.org/publicdomain/zero/1.0/",
    "GPL-2.0": "https://www.gnu.org/licenses/old-licenses/gpl-2.0.html",
    "MIT": "https://opensource.org/license/mit",
    "Unicode-3.0": "https://www.unicode.org/license.txt",
    "WordNet": "https://wordnet.princeton.edu/license-and-commercial-use",
}


def notice() -> str:
    """The text of the part of NOTICE that names the packages."""
    lines = []
    for package in PACKAGES:
        lines += [f"{package.credit}", f"    package: {package.name} {package.version}"]
        licence = f"{package.licence} {LICENCES.get(package.licence, '')}".rstrip()
        lines += [f"    licence: {licence}", f"    use: {USES[package.use]}", ""]
    return "\n".join(lines)
