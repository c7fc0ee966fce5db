"""A bundle as an OCI artefact: an image layout that ordinary registries and their tools take.

A layer per file, named by the annotation that ``oras pull`` goes by, so that what it pulls is the
bundle itself, and a file that several bundles share is kept once. Only what the manifest covers
travels, with the signatures; the same bundle gives the same bytes.
"""

from __future__ import annotations

import glob
import hashlib
import os
import re
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import msgspec

from edge_mdeq.bundle.manifest import Manifest
from edge_mdeq.bundle.reader import CHUNK, MANIFEST, MANIFEST_LIMIT, open_bundle, read_manifest
from edge_mdeq.bundle.signature import SIGNATURE, KeyFiles
from edge_mdeq.bundle.writer import sync_tree, writing_bundle
from edge_mdeq.errors import BundleError
from edge_mdeq.files import read_capped, sync_folder

__all__ = ["ARTIFACT_TYPE", "pack", "unpack"]

ARTIFACT_TYPE = "application/vnd.edge-mdeq.bundle.v1"
MANIFEST_TYPE, FILE_TYPE = f"{ARTIFACT_TYPE}.manifest+json", f"{ARTIFACT_TYPE}.file"
IMAGE, INDEX = (f"application/vnd.oci.image.{kind}.v1+json" for kind in ("manifest", "index"))
EMPTY_TYPE, EMPTY = "application/vnd.oci.empty.v1+json", b"{}"
TITLE, REF = "org.opencontainers.image.title", "org.opencontainers.image.ref.name"
LAYOUT, LAYOUT_VERSION = "oci-layout", "1.0.0"
JSON_LIMIT = 4 * 2**20  # bytes of an index or of an image manifest, as registries have it
TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
DIGEST = re.compile(r"sha256:([0-9a-f]{64})")

T = TypeVar("T")


@dataclass(frozen=True)
class Descriptor:
    """What points to a blob."""

    mediaType: str  # noqa: N815, as the specification spells it
    digest: str
    size: int
    artifactType: str = ""  # noqa: N815
    annotations: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Listing:
    """An image index or an image manifest; of either what matters here."""

    manifests: tuple[Descriptor, ...] = ()
    layers: tuple[Descriptor, ...] = ()
    artifactType: str = ""  # noqa: N815


def pack(bundle: Path, out: Path, tag: str = "latest", force: bool = False) -> str:
    """Write a bundle as an image layout, which appears as a whole.

    Args:
        bundle: ``NAME.mdeq``; all its hashes are checked.
        out: the layout's folder.
        tag: of the artefact within it.
        force: replace a layout that is there.

    Returns:
        The digest by which registries will know it.

    Raises:
        BundleError: the bundle is damaged, or the layout is there or cannot be written.
    """
    if not TAG.fullmatch(tag):
        raise BundleError(f"{tag!r} is no tag: letters, digits, '_', '.' and '-', at most 128")
    opened = open_bundle(bundle, verify=True)
    extra = {MANIFEST: read_manifest(bundle)}
    if (bundle / SIGNATURE).exists():
        extra[SIGNATURE] = read_capped(bundle / SIGNATURE, MANIFEST_LIMIT)
    with placing(out, force) as folder:
        blobs = folder / "blobs" / "sha256"
        blobs.mkdir(parents=True)
        layers = [described(MANIFEST_TYPE, put(blobs, data), name) for name, data in extra.items()]
        for name, entry in sorted(opened.manifest.files.items()):
            copy(opened.file(name), blobs / entry.sha256, entry.sha256, entry.bytes)
            layers.append(described(FILE_TYPE, (entry.sha256, entry.bytes), name))
        image = {
            "schemaVersion": 2,
            "mediaType": IMAGE,
            "artifactType": ARTIFACT_TYPE,
            "config": described(EMPTY_TYPE, put(blobs, EMPTY)),
            "layers": layers,
            "annotations": shown(opened.manifest),
        }
        found = described(IMAGE, put(blobs, encoded(image)))
        found |= {"artifactType": ARTIFACT_TYPE, "annotations": {REF: tag}}
        index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [found]}
        (folder / "index.json").write_bytes(encoded(index))
        (folder / LAYOUT).write_bytes(encoded({"imageLayoutVersion": LAYOUT_VERSION}))
    return str(found["digest"])


def shown(manifest: Manifest) -> dict[str, str]:
    """What registries show."""
    prefix, provenance = "org.opencontainers.image.", manifest.provenance
    return {
        f"{prefix}title": manifest.name,
        f"{prefix}description": f"{manifest.task}, {len(manifest.labels)} classes",
        f"{prefix}licenses": provenance.licence,
        "vnd.edge-mdeq.created-by": manifest.created_by,
        "vnd.edge-mdeq.requires": manifest.requires,
        "vnd.edge-mdeq.schema": str(manifest.schema),
    }


def described(kind: str, blob: tuple[str, int], title: str | None = None) -> dict[str, Any]:
    """A descriptor as JSON."""
    digest, size = blob
    found: dict[str, Any] = {"mediaType": kind, "digest": f"sha256:{digest}", "size": size}
    return found | ({} if title is None else {"annotations": {TITLE: title}})


def encoded(value: object) -> bytes:
    return msgspec.json.encode(value)


def put(blobs: Path, data: bytes) -> tuple[str, int]:
    """Write a blob under its digest."""
    digest = hashlib.sha256(data).hexdigest()
    (blobs / digest).write_bytes(data)
    return digest, len(data)


@contextmanager
def placing(out: Path, force: bool) -> Iterator[Path]:
    """A folder to fill, which becomes ``out``."""
    if os.path.lexists(out) and not (force and (out / LAYOUT).is_file()):
        advice = "replace it with --force" if (out / LAYOUT).is_file() else "choose another name"
        raise BundleError(f"{out} already exists; {advice}")
    place = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        for left in out.parent.glob(f".{glob.escape(out.name)}.*.tmp"):
            number = left.name.rsplit(".", 2)[-2]
            if left == place or not Path("/proc", number).exists():  # of one that was killed
                shutil.rmtree(left, ignore_errors=True)
        place.mkdir()
        yield place
        sync_tree(place)
        if out.exists():
            shutil.rmtree(out)
        place.rename(out)
        sync_folder(out.parent)
    except OSError as error:
        raise BundleError(f"cannot write {out}: {error.strerror}; free some space") from error
    finally:
        shutil.rmtree(place, ignore_errors=True)


def unpack(
    layout: Path,
    out: Path,
    tag: str | None = None,
    force: bool = False,
    require_signature: KeyFiles | None = None,
) -> Manifest:
    """Take a bundle out of an image layout, whoever has written it.

    Every blob is checked against its digest, and every file against the bundle's manifest.

    Args:
        layout: its folder.
        out: the bundle, ``NAME.mdeq``.
        tag: which of its artefacts, if there are several.
        force: replace a bundle that is there.
        require_signature: public keys, one of which must have signed the bundle.

    Returns:
        The bundle's manifest.

    Raises:
        BundleError: no layout, none of a bundle, damaged, or ``out`` cannot be written.
        ConfigError, MissingExtraError: see ``open_bundle``.
    """
    layers = {title(layer, layout): layer for layer in image_of(layout, tag).layers}
    if MANIFEST not in layers:
        raise BundleError(f"{layout} holds no {MANIFEST}; it was not packed by edge-mdeq pack")
    with writing_bundle(out, force) as folder:
        for name in (MANIFEST, SIGNATURE):
            if name in layers:
                (folder / name).write_bytes(small(layout, layers.pop(name)))
        manifest = open_bundle(folder, require_signature=require_signature).manifest
        if layers.keys() != manifest.files.keys():
            odd = sorted(layers.keys() ^ manifest.files.keys())
            raise BundleError(f"{layout} and the manifest in it disagree about {', '.join(odd)}")
        for name, entry in manifest.files.items():
            if (layers[name].digest, layers[name].size) != (f"sha256:{entry.sha256}", entry.bytes):
                raise BundleError(f"{layout} has another {name} than the manifest in it says")
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            copy(blob(layout, layers[name]), folder / name, entry.sha256, entry.bytes)
        open_bundle(folder, verify=True)
    return manifest


def image_of(layout: Path, tag: str | None) -> Listing:
    """The artefact of a tag; without one, the only one that there is."""
    try:
        version = msgspec.json.decode(read_capped(layout / LAYOUT, JSON_LIMIT))
        raw = read_capped(layout / "index.json", JSON_LIMIT)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(f"{layout} is no OCI image layout: {error}") from error
    if not isinstance(version, dict) or version.get("imageLayoutVersion") != LAYOUT_VERSION:
        raise BundleError(f"{layout} is an image layout of another version than {LAYOUT_VERSION}")
    listed = listing(raw, layout).manifests
    tags = [found.annotations.get(REF, "") for found in listed]
    chosen = [d for d, name in zip(listed, tags, strict=True) if tag in (None, name)]
    if len(chosen) != 1:
        there = ", ".join(repr(name) for name in tags) or "none"
        raise BundleError(f"{layout} has the tags {there}; name one of them with --tag")
    image = listing(small(layout, chosen[0]), layout)
    if image.artifactType != ARTIFACT_TYPE:
        raise BundleError(f"{layout} holds {image.artifactType or 'an image'!r}, and no bundle")
    return image


def listing(raw: bytes, layout: Path) -> Listing:
    try:
        return msgspec.json.decode(raw, type=Listing)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(f"{layout} is damaged: {error}") from error


def title(layer: Descriptor, layout: Path) -> str:
    """The file that a layer is, if that is one inside a bundle."""
    name = layer.annotations.get(TITLE, "")
    path = PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts or path.as_posix() != name:
        raise BundleError(f"{layout}: {name!r} is not a path inside a bundle")
    return name


def blob(layout: Path, descriptor: Descriptor) -> Path:
    """Where a blob lies, which its digest alone says."""
    found = DIGEST.fullmatch(descriptor.digest)
    if found is None:
        raise BundleError(f"{layout}: {descriptor.digest!r} is no SHA-256")
    return layout / "blobs" / "sha256" / found[1]


def small(layout: Path, descriptor: Descriptor) -> bytes:
    """A blob that is read as a whole, checked."""
    path = blob(layout, descriptor)
    try:
        data = read_capped(path, JSON_LIMIT)
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}") from error
    if len(data) != descriptor.size or hashlib.sha256(data).hexdigest() != path.name:
        raise BundleError(f"{path} is not what its name says: damaged; pull it again")
    return data


def copy(source: Path, target: Path, digest: str, size: int) -> None:
    """Copy a plain file of so many bytes, and see on the way that they are those of ``digest``."""
    found = hashlib.sha256()
    try:
        handle = os.open(source, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        with open(handle, "rb", closefd=True) as read, target.open("wb") as written:
            status = os.fstat(handle)
            whole = stat.S_ISREG(status.st_mode) and status.st_size == size
            while whole and (data := read.read(min(CHUNK, size - read.tell() + 1))):
                found.update(data)
                written.write(data)
    except OSError as error:
        raise BundleError(f"cannot copy {source} to {target}: {error.strerror}") from error
    if not whole or found.hexdigest() != digest:
        raise BundleError(f"{source} is not what its name says: damaged; copy it again")
