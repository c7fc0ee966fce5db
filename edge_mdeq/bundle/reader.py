"""Opening a bundle: nothing of it is used before its hashes are checked."""

from __future__ import annotations

import errno
import glob
import hashlib
import mmap
import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from edge_mdeq.bundle.decoding import decode_manifest
from edge_mdeq.bundle.graph_files import look_through
from edge_mdeq.bundle.manifest import BUNDLE_SUFFIX, Manifest, Profile
from edge_mdeq.bundle.signature import KeyFiles, PublicKey, check_manifest, read_public_keys
from edge_mdeq.errors import BundleError
from edge_mdeq.files import read_capped

__all__ = ["MANIFEST", "Bundle", "hash_file", "open_bundle"]

MANIFEST = "manifest.json"
ASIDE = "old"  # where, in its temporary folder, a writer keeps the bundle that it replaces
MANIFEST_LIMIT = 4 * 2**20  # bytes; far above any real one, and its values take ten times as much
CHUNK = 2**20


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: where it lies and what its manifest says.

    Attributes:
        path: its folder.
        manifest: decoded and validated.
        keys: of which one has signed the manifest; empty if that was not asked for.
    """

    path: Path
    manifest: Manifest
    keys: tuple[PublicKey, ...] = ()

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

        A graph is looked through as well: it may refer to the weights of its profile, and to
        nothing else.

        Raises:
            BundleError: missing, a link out of the bundle, altered, or a graph that refers to other
                files or to operators that are not ONNX's.
        """
        entry = self.manifest.files[name]
        path = self.path / name
        if not os.path.isfile(path):
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
        for profile in self.manifest.profiles.values():
            if name in profile.all_graphs:
                check_graph(path, name, {weights.file for weights in profile.weights})
        return path

    def verify(self) -> None:
        """Check every file that the manifest names."""
        for name in self.manifest.files:
            self.file(name)


def open_bundle(
    path: Path, verify: bool = False, require_signature: KeyFiles | None = None
) -> Bundle:
    """Read a bundle's manifest; with ``verify`` check every file at once.

    Args:
        path: the folder.
        verify: check all hashes now; else each file's before it is used.
        require_signature: files of public keys, one of which must have signed the manifest. That
            is checked before anything of it is parsed.

    Raises:
        BundleError: not a bundle, altered, incomplete, written by a newer version, or not signed
            by any of the keys.
        ConfigError: a file that is no public key.
        MissingExtraError: a signature is required, and the extra ``sign`` is not installed.
    """
    keys = () if require_signature is None else read_public_keys(require_signature)
    raw = read_manifest(path)
    if keys:
        check_manifest(path, raw, keys)
    bundle = Bundle(path, decode_manifest(raw, str(path / MANIFEST)), keys)
    if verify:
        bundle.verify()
    return bundle


def read_manifest(path: Path) -> bytes:
    """The bytes of a bundle's manifest, as they are.

    Raises:
        BundleError: there is none, or it is none.
    """
    if not os.path.isdir(path):
        reason = "is a file, not a folder" if os.path.exists(path) else "does not exist"
        advice = f"a bundle is the folder NAME{BUNDLE_SUFFIX} that `edge-mdeq export` writes"
        folder, name = glob.escape(str(path.parent)), glob.escape(path.name)
        for aside in glob.glob(f"{folder}/.{name}.*.tmp/{ASIDE}"):
            advice = f"an export that replaced it was killed, and left it in {aside}: rename that"
        raise BundleError(f"bundle {path} {reason}; {advice}")
    manifest = path / MANIFEST
    try:
        if not manifest.resolve().is_relative_to(path.resolve()):
            raise BundleError(f"{manifest} leads out of the bundle; links are not followed")
        return read_capped(manifest, MANIFEST_LIMIT)
    except OSError as error:
        if error.errno == errno.EFBIG:
            raise BundleError(f"{manifest} is {error.strerror}; not a manifest") from error
        raise BundleError(f"{path} is not a bundle: {MANIFEST}: {error.strerror}") from error


def check_graph(path: Path, name: str, weights: set[str]) -> None:
    """See that loading a graph opens none but the weights of its profile, and runs ONNX alone.

    Raises:
        BundleError: it is no graph, or would do more.
    """
    with path.open("rb") as file:
        if not path.stat().st_size:
            raise BundleError(f"{path} is empty; export the bundle again")
        with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as data:
            facts = look_through(data, str(path))
    folder = PurePosixPath(name).parent
    for location in sorted(facts.files):
        if f"{folder}/{location}" not in weights:
            raise BundleError(
                f"{path} refers to the file {location!r}, which is not among the weights that the "
                "manifest names for it; take the bundle from whoever exported it"
            )
    if foreign := sorted(facts.domains - {"", "ai.onnx"}):
        raise BundleError(
            f"{path} has operators of {', '.join(map(repr, foreign))}, which may bring code "
            "of their own; edge-mdeq writes none: take the bundle from whoever exported it"
        )


def hash_file(path: Path) -> str:
    """SHA-256 in hex, read in chunks so that weights of any size cost no memory."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
