"""Opening a bundle: nothing of it is used before its hashes are checked."""

from __future__ import annotations

import glob
import hashlib
from dataclasses import dataclass
from pathlib import Path

from edge_mdeq.bundle.manifest import BUNDLE_SUFFIX, Manifest, Profile, decode_manifest
from edge_mdeq.errors import BundleError

__all__ = ["MANIFEST", "Bundle", "hash_file", "open_bundle"]

MANIFEST = "manifest.json"
ASIDE = "old"  # where, in its temporary folder, a writer keeps the bundle that it replaces
MANIFEST_LIMIT = 16 * 2**20  # bytes; far above any real one, checked before it is read
CHUNK = 2**20


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: where it lies and what its manifest says."""

    path: Path
    manifest: Manifest

    def profile(self, name: str) -> Profile:
        """A target profile by name.

        Raises:
            BundleError: the bundle was not exported for it.
        """
        if name not in self.manifest.profiles:
            raise BundleError(
                f"{self.path} has no graphs for {name!r}, only for "
                f"{', '.join(self.manifest.profiles)}"
            )
        return self.manifest.profiles[name]

    def file(self, name: str) -> Path:
        """The path of a file that the manifest names, after checking its size and SHA-256.

        Raises:
            BundleError: missing, a link out of the bundle, or altered.
        """
        entry = self.manifest.files[name]
        path = self.path / name
        if not path.is_file():
            raise BundleError(f"{self.path} is incomplete: {name} is missing; copy or export again")
        if not path.resolve().is_relative_to(self.path.resolve()):
            raise BundleError(f"{path} leads out of the bundle; links are not followed")
        size = path.stat().st_size
        if size != entry.bytes:
            raise BundleError(
                f"{path} has {size} bytes, the manifest says {entry.bytes}: the copy is "
                "incomplete or altered; copy or export again"
            )
        if hash_file(path) != entry.sha256:
            raise BundleError(
                f"{path} does not have the SHA-256 that the manifest gives: it was altered or "
                "damaged; copy or export again"
            )
        return path

    def verify(self) -> None:
        """Check every file that the manifest names."""
        for name in self.manifest.files:
            self.file(name)


def open_bundle(path: Path, verify: bool = False) -> Bundle:
    """Read a bundle's manifest; with ``verify`` check every file at once.

    Raises:
        BundleError: not a bundle, altered, incomplete, or written by a newer version.
    """
    if not path.is_dir():
        reason = "is a file, not a folder" if path.exists() else "does not exist"
        advice = f"a bundle is the folder NAME{BUNDLE_SUFFIX} that `edge-mdeq export` writes"
        for aside in path.parent.glob(f".{glob.escape(path.name)}.*.tmp/{ASIDE}"):
            advice = f"an export that replaced it was killed, and left it in {aside}: rename that"
        raise BundleError(f"bundle {path} {reason}; {advice}")
    manifest = path / MANIFEST
    try:
        if manifest.stat().st_size > MANIFEST_LIMIT:
            raise BundleError(f"{manifest} is larger than {MANIFEST_LIMIT} bytes; not a manifest")
        raw = manifest.read_bytes()
    except OSError as error:
        raise BundleError(f"{path} is not a bundle: {MANIFEST}: {error.strerror}") from error
    bundle = Bundle(path, decode_manifest(raw, str(manifest)))
    if verify:
        bundle.verify()
    return bundle


def hash_file(path: Path) -> str:
    """SHA-256 in hex, read in chunks so that weights of any size cost no memory."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
