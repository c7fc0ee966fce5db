"""Signatures: who wrote a manifest, and with the hashes in it every file of a bundle.

Ed25519 (RFC 8032) over the manifest's exact bytes, with a prefix that says what is signed, so that
a signature holds for nothing else. ``manifest.sig`` beside the manifest has one or several of them:
while keys are exchanged, old and new devices find theirs. Needs the extra ``sign``.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from edge_mdeq.errors import BundleError, ConfigError, require
from edge_mdeq.files import read_capped, write_atomic

__all__ = [
    "SIGNATURE",
    "KeyFiles",
    "PrivateKey",
    "PublicKey",
    "Signature",
    "check_manifest",
    "key_files",
    "make_key",
    "read_private_key",
    "read_public_keys",
    "read_signatures",
    "sign",
    "sign_manifest",
    "signer",
]

KeyFiles = str | Path | Sequence[str | Path]

SIGNATURE = "manifest.sig"
FORMAT, VERSION, ALGORITHM = "edge-mdeq-signatures", 1, "ed25519"
LIMIT, MOST = 2**16, 16  # bytes of a key or of signatures, and how many of these
MANIFEST_PURPOSE = "bundle manifest"
PASSWORD = "EDGE_MDEQ_KEY_PASSWORD"  # the variable with it


@dataclass(frozen=True)
class Signature:
    """One signature.

    Attributes:
        key: the id of the key that made it.
        algorithm: "ed25519".
        signature: its 64 bytes in Base64.
    """

    key: str
    algorithm: str
    signature: str


@dataclass(frozen=True)
class Signatures:
    """The content of ``manifest.sig``; ``manifest`` is the SHA-256 that they were made for."""

    manifest: str
    signatures: tuple[Signature, ...]
    format: str = FORMAT
    version: int = VERSION


@dataclass(frozen=True)
class PublicKey:
    """What signatures are checked with; two of the same bytes are equal."""

    raw: bytes

    @property
    def id(self) -> str:
        """Sixteen digits that tell it from others: of the SHA-256 of its bytes."""
        return hashlib.sha256(self.raw).hexdigest()[:16]

    def has_signed(self, purpose: str, data: bytes, signature: Signature) -> bool:
        """Whether ``signature`` is this key's for ``data``."""
        ed25519 = library("asymmetric.ed25519")
        try:
            given = base64.b64decode(signature.signature, validate=True)
            ed25519.Ed25519PublicKey.from_public_bytes(self.raw).verify(
                given, message(purpose, data)
            )
        except (binascii.Error, ValueError):
            return False
        except require("cryptography.exceptions", "sign", "signatures").InvalidSignature:
            return False
        return signature.algorithm == ALGORITHM


@dataclass(frozen=True)
class PrivateKey:
    """What signatures are made with."""

    key: Any

    @property
    def public(self) -> PublicKey:
        return PublicKey(self.key.public_key().public_bytes_raw())


def message(purpose: str, data: bytes) -> bytes:
    """What is signed."""
    return b"edge-mdeq 1: " + purpose.encode() + b"\0" + data


def library(part: str) -> Any:
    return require(f"cryptography.hazmat.primitives.{part}", "sign", "signatures")


def sign(purpose: str, data: bytes, key: PrivateKey) -> Signature:
    """Sign ``data`` for a purpose."""
    made = key.key.sign(message(purpose, data))
    return Signature(key.public.id, ALGORITHM, base64.b64encode(made).decode())


def signer(
    purpose: str, data: bytes, signatures: Sequence[Signature], keys: Sequence[PublicKey]
) -> PublicKey | None:
    """The first of ``keys`` that has signed ``data``; None if none has."""
    for key in keys:
        if any(s.key == key.id and key.has_signed(purpose, data, s) for s in signatures):
            return key
    return None


def check_manifest(path: Path, raw: bytes, keys: Sequence[PublicKey]) -> PublicKey:
    """The key among ``keys`` that has signed the manifest ``raw`` of the bundle at ``path``.

    Raises:
        BundleError: it is not signed, only by others, or altered since.
    """
    wanted = " or ".join(key.id for key in keys)
    found = read_signatures(path)
    if found is None:
        raise BundleError(
            f"{path} is not signed, and a signature by key {wanted} is required; have it signed: "
            f"edge-mdeq sign {path} --key PRIVATE.pem"
        )
    if (key := signer(MANIFEST_PURPOSE, raw, found.signatures, keys)) is not None:
        return key
    if not {signature.key for signature in found.signatures} & {key.id for key in keys}:
        others = ", ".join(signature.key for signature in found.signatures) or "nobody"
        raise BundleError(
            f"{path} is signed by key {others}, not by {wanted}, which is required; take the "
            "bundle from the holder of that key, or name the key that you trust"
        )
    raise BundleError(
        f"the manifest of {path} is not the one that was signed: it was altered since, by hand or "
        "by edge-mdeq unroll, or its signature is damaged; have it signed again, or copy it again"
    )


def read_signatures(path: Path) -> Signatures | None:
    """What lies beside the manifest of the bundle at ``path``; None if nothing does.

    Raises:
        BundleError: it makes no sense.
    """
    file = path / SIGNATURE
    try:
        found = msgspec.json.decode(read_capped(file, LIMIT), type=Signatures)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BundleError(f"{file} cannot be read: {error.strerror}") from error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(f"{file} holds no signatures ({error}); sign again") from error
    if found.format != FORMAT or found.version != VERSION or len(found.signatures) > MOST:
        raise BundleError(f"{file} holds no signatures that this edge-mdeq reads; upgrade it")
    if not all(s.key.isalnum() and len(s.key) == 16 for s in found.signatures):
        raise BundleError(f"{file} names keys that are none; sign again")
    return found


def sign_manifest(path: Path, raw: bytes, key: PrivateKey) -> None:
    """Put a signature over the manifest ``raw`` beside it; others' over the same bytes stay.

    Raises:
        BundleError: it cannot be written.
    """
    digest = hashlib.sha256(raw).hexdigest()
    try:
        before = read_signatures(path)
    except BundleError:  # damaged ones are replaced
        before = None
    kept = before.signatures if before is not None and before.manifest == digest else ()
    others = [signature for signature in kept if signature.key != key.public.id][: MOST - 1]
    made = Signatures(digest, (*others, sign(MANIFEST_PURPOSE, raw, key)))
    data = msgspec.json.format(msgspec.json.encode(made), indent=2) + b"\n"
    try:
        write_atomic(path / SIGNATURE, data)
    except OSError as error:
        raise BundleError(f"cannot write {path / SIGNATURE}: {error.strerror}") from error


def make_key(path: Path) -> tuple[Path, PublicKey]:
    """Make a key pair: the private one at ``path``, for its owner alone, the public one beside it.

    Returns:
        The file of the public key, ``NAME.pub``, and the key.

    Raises:
        ConfigError: there is a file already, or none can be written.
    """
    key = library("asymmetric.ed25519").Ed25519PrivateKey.generate()
    code = library("serialization")
    public = path.with_suffix(".pub")
    private_pem = key.private_bytes(
        code.Encoding.PEM, code.PrivateFormat.PKCS8, code.NoEncryption()
    )
    public_pem = key.public_key().public_bytes(
        code.Encoding.PEM, code.PublicFormat.SubjectPublicKeyInfo
    )
    if public == path:
        raise ConfigError(f"{path} is the name of a public key; call the private one NAME.pem")
    if os.path.lexists(public):  # before there is a private key without its public one
        raise ConfigError(f"{public} exists, and no key is overwritten")
    try:
        for file, mode, pem in ((path, 0o600, private_pem), (public, 0o644, public_pem)):
            handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
            with open(handle, "wb") as opened:
                opened.write(pem)
                opened.flush()
                os.fsync(handle)
    except FileExistsError as error:
        raise ConfigError(f"{error.filename} exists, and no key is overwritten") from error
    except OSError as error:
        raise ConfigError(f"cannot write {error.filename}: {error.strerror}") from error
    return public, PrivateKey(key).public


def read_private_key(path: Path) -> PrivateKey:
    """A private key in PEM; an encrypted one is opened by the variable EDGE_MDEQ_KEY_PASSWORD.

    Raises:
        ConfigError: it cannot be read, others can read it as well, or it is no such key.
        MissingExtraError: the extra ``sign`` is not installed.
    """
    pem = read_pem(path)
    if b"PRIVATE KEY" not in pem:
        raise ConfigError(f"{path} holds no private key; edge-mdeq sign --new-key makes one")
    if path.stat().st_mode & 0o077:
        raise ConfigError(f"{path} can be read by others than its owner: chmod 600 {path}")
    given = os.environ.get(PASSWORD)
    load = library("serialization").load_pem_private_key
    try:
        key = load(pem, given.encode() if given else None)
    except TypeError as error:
        raise ConfigError(
            f"{path}: {error}; an encrypted key needs its password in {PASSWORD}, another none"
        ) from error
    except Exception as error:  # its own, which share no public base
        raise ConfigError(f"{path} is no private key that can be read: {error}") from error
    if not isinstance(key, library("asymmetric.ed25519").Ed25519PrivateKey):
        raise ConfigError(f"{path} is a key of another kind than Ed25519; make one with --new-key")
    return PrivateKey(key)


def read_public_keys(paths: KeyFiles) -> tuple[PublicKey, ...]:
    """Public keys in PEM, one a file.

    Raises:
        ConfigError: there is none, one cannot be read, or it is no such key.
        MissingExtraError: the extra ``sign`` is not installed.
    """
    files = key_files(paths)
    if not files:
        raise ConfigError("a signature is required, but of no key; name the file of a public key")
    return tuple(read_public_key(file) for file in files)


def key_files(paths: KeyFiles) -> list[Path]:
    """One file or several, as paths."""
    return [Path(path) for path in ([paths] if isinstance(paths, str | Path) else paths)]


def read_public_key(path: Path) -> PublicKey:
    pem = read_pem(path)
    if b"PRIVATE KEY" in pem:
        raise ConfigError(
            f"{path} is a private key: keep it where bundles are signed, and give {path.stem}.pub "
            "to devices"
        )
    load = library("serialization").load_pem_public_key
    try:
        key = load(pem)
    except Exception as error:  # its own, which share no public base
        raise ConfigError(f"{path} is no public key in PEM; NAME.pub of --new-key is") from error
    if not isinstance(key, library("asymmetric.ed25519").Ed25519PublicKey):
        raise ConfigError(f"{path} is a key of another kind than Ed25519")
    return PublicKey(key.public_bytes_raw())


def read_pem(path: Path) -> bytes:
    try:
        return read_capped(path, LIMIT)
    except OSError as error:
        raise ConfigError(f"cannot read the key {path}: {error.strerror}") from error
