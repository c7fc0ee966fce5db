"""Signatures: a bundle of a stranger, or one that was altered, is refused before it is parsed."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edge_mdeq.bundle import open_bundle
from edge_mdeq.bundle.reader import read_manifest
from edge_mdeq.bundle.signature import (
    SIGNATURE,
    make_key,
    message,
    read_private_key,
    read_public_keys,
    sign,
    sign_manifest,
    signer,
)
from edge_mdeq.errors import BundleError, ConfigError

pytest.importorskip("cryptography")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:cryptography.*")


@pytest.fixture
def key(tmp_path: Path) -> Path:
    """A private key; its public half is ``key.pub``."""
    make_key(tmp_path / "key.pem")
    return tmp_path / "key.pem"


@pytest.fixture
def other(tmp_path: Path) -> Path:
    make_key(tmp_path / "other.pem")
    return tmp_path / "other.pem"


@pytest.fixture
def bundle(segmenter_bundle: Path, own_copy: Callable[[Path], Path]) -> Path:
    return own_copy(segmenter_bundle)


def public(key: Path) -> Path:
    return key.with_suffix(".pub")


def sign_with(bundle: Path, *keys: Path) -> None:
    for key in keys:
        sign_manifest(bundle, read_manifest(bundle), read_private_key(key))


def test_a_signed_bundle_opens_for_its_key(bundle: Path, key: Path) -> None:
    sign_with(bundle, key)
    opened = open_bundle(bundle, verify=True, require_signature=public(key))
    assert opened.keys == read_public_keys(public(key))
    assert open_bundle(bundle).manifest == opened.manifest, "to who asks for none it is no matter"


def test_an_unsigned_bundle_is_refused(bundle: Path, key: Path) -> None:
    with pytest.raises(BundleError, match=f"is not signed.*edge-mdeq sign {bundle} --key"):
        open_bundle(bundle, require_signature=public(key))


def test_another_key_is_refused(bundle: Path, key: Path, other: Path) -> None:
    sign_with(bundle, other)
    ids = [read_public_keys(public(each))[0].id for each in (other, key)]
    with pytest.raises(BundleError, match="is signed by key {}, not by {}".format(*ids)):
        open_bundle(bundle, require_signature=public(key))


def test_while_keys_are_exchanged_several_hold(bundle: Path, key: Path, other: Path) -> None:
    """A device may trust several keys, and a bundle may be signed by several."""
    sign_with(bundle, other)
    open_bundle(bundle, require_signature=[public(key), public(other)])
    sign_with(bundle, key)
    for each in (key, other):
        open_bundle(bundle, require_signature=public(each))


def test_an_altered_manifest_is_refused_whatever_it_says(bundle: Path, key: Path) -> None:
    """By a single blank; and before it is parsed: there is no JSON to complain about."""
    sign_with(bundle, key)
    whole = (bundle / "manifest.json").read_bytes()
    for altered in (whole + b" ", b"{", whole.replace(b'"road"', b'"roae"')):
        (bundle / "manifest.json").write_bytes(altered)
        with pytest.raises(BundleError, match="not the one that was signed"):
            open_bundle(bundle, require_signature=public(key))


def test_an_altered_file_is_refused_by_its_hash(bundle: Path, key: Path) -> None:
    sign_with(bundle, key)
    next(bundle.rglob("weights*.bin")).write_bytes(b"other")
    with pytest.raises(BundleError, match="the manifest says"):
        open_bundle(bundle, verify=True, require_signature=public(key))


def test_what_was_signed_for_one_purpose_holds_for_no_other(key: Path) -> None:
    private = read_private_key(key)
    made = sign("engine", b"data", private)
    assert signer("engine", b"data", [made], [private.public]) == private.public
    assert signer("bundle manifest", b"data", [made], [private.public]) is None
    assert signer("engine", b"datA", [made], [private.public]) is None


def test_signing_anew_forgets_what_was_signed_before(bundle: Path, key: Path, other: Path) -> None:
    sign_with(bundle, other)
    (bundle / "manifest.json").write_bytes(read_manifest(bundle) + b"\n")
    sign_with(bundle, key)
    with pytest.raises(BundleError, match="is signed by key"):
        open_bundle(bundle, require_signature=public(other))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda value: "{", "holds no signatures"),
        (lambda value: json.dumps([]), "holds no signatures"),
        (lambda value: '{"manifest": "\xff"}', "holds no signatures"),
        (lambda value: "[" * 60_000, "holds no signatures"),
        (lambda value: " " * 2**17, "larger than"),
        (lambda value: json.dumps(value | {"version": 2}), "that this edge-mdeq reads"),
        (lambda value: json.dumps(value | {"signatures": value["signatures"] * 17}), "that this"),
    ],
)
def test_a_senseless_signature_file_is_refused(
    bundle: Path, key: Path, change: Callable[[dict[str, object]], str], why: str
) -> None:
    sign_with(bundle, key)
    file = bundle / SIGNATURE
    file.write_text(change(json.loads(file.read_text())), encoding="latin-1")
    with pytest.raises(BundleError, match=why):
        open_bundle(bundle, require_signature=public(key))
    sign_with(bundle, key)
    open_bundle(bundle, require_signature=public(key))


@pytest.mark.parametrize(
    "change", [{"signature": "AAAA"}, {"signature": "!"}, {"algorithm": "none"}]
)
def test_a_senseless_signature_is_none(bundle: Path, key: Path, change: dict[str, str]) -> None:
    sign_with(bundle, key)
    value = json.loads((bundle / SIGNATURE).read_text())
    value["signatures"][0] |= change
    (bundle / SIGNATURE).write_text(json.dumps(value))
    with pytest.raises(BundleError, match="its signature is damaged"):
        open_bundle(bundle, require_signature=public(key))


def test_a_new_key_is_for_its_owner_alone_and_overwrites_none(key: Path) -> None:
    assert key.stat().st_mode & 0o777 == 0o600
    before = key.read_bytes()
    with pytest.raises(ConfigError, match="no key is overwritten"):
        make_key(key)
    assert key.read_bytes() == before
    key.rename(key.with_name("elsewhere"))
    with pytest.raises(ConfigError, match="no key is overwritten"):
        make_key(key)
    assert not key.exists(), "no private key without its public one"
    with pytest.raises(ConfigError, match="call the private one"):
        make_key(key.with_suffix(".pub"))


def test_a_private_key_that_others_can_read_is_refused(key: Path) -> None:
    key.chmod(0o640)
    with pytest.raises(ConfigError, match=f"chmod 600 {key}"):
        read_private_key(key)


def rsa(private: bool) -> bytes:
    from cryptography.hazmat.primitives import serialization as code
    from cryptography.hazmat.primitives.asymmetric import ec

    made = ec.generate_private_key(ec.SECP256R1())
    if private:
        form = (code.Encoding.PEM, code.PrivateFormat.PKCS8, code.NoEncryption())
        return made.private_bytes(*form)
    return made.public_key().public_bytes(code.Encoding.PEM, code.PublicFormat.SubjectPublicKeyInfo)


def test_what_is_no_key_is_refused(key: Path, tmp_path: Path) -> None:
    file = tmp_path / "x"
    with pytest.raises(ConfigError, match="cannot read the key"):
        read_public_keys(tmp_path / "absent.pub")
    with pytest.raises(ConfigError, match=r"is a private key: .*give key.pub"):
        read_public_keys(key)
    with pytest.raises(ConfigError, match="holds no private key"):
        read_private_key(public(key))
    with pytest.raises(ConfigError, match="of no key"):
        read_public_keys([])
    file.write_bytes(b"hello")
    with pytest.raises(ConfigError, match="no public key in PEM"):
        read_public_keys(file)
    file.write_bytes(rsa(private=False))
    with pytest.raises(ConfigError, match="another kind than Ed25519"):
        read_public_keys([file])
    file.write_bytes(rsa(private=True))
    file.chmod(0o600)
    with pytest.raises(ConfigError, match="another kind than Ed25519"):
        read_private_key(file)


@pytest.fixture
def openssl() -> str:
    found = shutil.which("openssl")
    if found is None:
        pytest.skip("openssl is not installed")
    return found


def test_openssl_agrees(openssl: str, bundle: Path, key: Path, tmp_path: Path) -> None:
    """It is plain Ed25519 over the prefix and the manifest's bytes."""
    sign_with(bundle, key)
    value = json.loads((bundle / SIGNATURE).read_text())
    (tmp_path / "sig").write_bytes(base64.b64decode(value["signatures"][0]["signature"]))
    (tmp_path / "message").write_bytes(message("bundle manifest", read_manifest(bundle)))
    command = [openssl, "pkeyutl", "-verify", "-pubin", "-inkey", str(public(key)), "-rawin"]
    files = ["-in", str(tmp_path / "message"), "-sigfile", str(tmp_path / "sig")]
    done = subprocess.run([*command, *files], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Successfully" in done.stdout


def test_openssls_keys_sign(
    openssl: str, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Encrypted ones too, by a variable."""
    private, opened = tmp_path / "its.pem", tmp_path / "its.pub"
    make = [openssl, "genpkey", "-algorithm", "ed25519", "-aes256", "-pass", "pass:secret"]
    subprocess.run([*make, "-out", str(private)], check=True, capture_output=True)
    private.chmod(0o600)
    export = [openssl, "pkey", "-in", str(private), "-passin", "pass:secret", "-pubout"]
    subprocess.run([*export, "-out", str(opened)], check=True, capture_output=True)
    with pytest.raises(ConfigError, match="EDGE_MDEQ_KEY_PASSWORD"):
        read_private_key(private)
    monkeypatch.setenv("EDGE_MDEQ_KEY_PASSWORD", "secret")
    sign_with(bundle, private)
    open_bundle(bundle, require_signature=opened)


def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "edge_mdeq.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        timeout=120,
        check=False,
    )


def test_the_command_signs_and_others_ask_for_it(bundle: Path, tmp_path: Path) -> None:
    made = run("sign", "--new-key", tmp_path / "k.pem")
    assert made.returncode == 0, made.stderr
    asked = ("--require-signature", tmp_path / "k.pub")
    refused = run("run", bundle, "test://", "none", "--max-frames", 1, *asked)
    assert refused.returncode == 1
    assert "is not signed" in refused.stderr
    assert "not signed" in run("inspect", bundle).stdout
    signed = run("sign", bundle, "--key", tmp_path / "k.pem")
    assert signed.returncode == 0, signed.stderr
    assert run("run", bundle, "test://", "none", "--max-frames", 1, *asked).returncode == 0
    assert "not checked" in run("inspect", bundle).stdout
    assert "that of a required key holds" in run("inspect", bundle, *asked).stdout
    (bundle / "manifest.json").write_bytes(read_manifest(bundle) + b"\n")
    variable = {"EDGE_MDEQ_REQUIRE_SIGNATURE": str(tmp_path / "k.pub")}
    for verb in (("inspect", bundle), ("engine", bundle), ("val", bundle, "--data", tmp_path)):
        found = run(*verb, **variable)
        assert found.returncode == 1
        assert "not the one that was signed" in found.stderr, verb


def test_further_rungs_need_a_new_signature(bundle: Path, key: Path) -> None:
    pytest.importorskip("onnx_ir")
    sign_with(bundle, key)
    same = run("unroll", bundle, "--iterations", 1)
    assert same.returncode == 0, same.stderr
    open_bundle(bundle, require_signature=public(key))
    more = run("unroll", bundle, "--iterations", 3)
    assert more.returncode == 0, more.stderr
    assert "sign it again" in more.stderr
    assert f"edge-mdeq sign {bundle} --key" in more.stdout
    with pytest.raises(BundleError, match="is not signed"):
        open_bundle(bundle, require_signature=public(key))


def test_a_damaged_bundle_is_not_signed(bundle: Path, key: Path) -> None:
    next(bundle.rglob("weights*.bin")).write_bytes(b"other")
    assert "the manifest says" in run("sign", bundle, "--key", key).stderr
    assert not (bundle / SIGNATURE).exists()


def test_without_the_library_a_required_signature_is_no_matter_of_luck(
    bundle: Path, key: Path, tmp_path: Path
) -> None:
    sign_with(bundle, key)
    (tmp_path / "site" / "cryptography").mkdir(parents=True)
    (tmp_path / "site" / "cryptography" / "__init__.py").write_text("raise ImportError('none')")
    found = run("inspect", bundle, "--require-signature", public(key),
                PYTHONPATH=str(tmp_path / "site"))  # fmt: skip
    assert found.returncode == 1
    assert "edge-mdeq[sign]" in found.stderr
