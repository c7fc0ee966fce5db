"""A packed bundle is an OCI image layout by the specification's rules, and comes back as it was."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edge_mdeq.bundle import open_bundle
from edge_mdeq.bundle.oci import ARTIFACT_TYPE, pack, unpack
from edge_mdeq.errors import BundleError

SPEC = Path("/usr/share/gocode/src/github.com/opencontainers/image-spec/schema")
TITLE = "org.opencontainers.image.title"


@pytest.fixture
def bundle(segmenter_bundle: Path, own_copy: Callable[[Path], Path]) -> Path:
    return own_copy(segmenter_bundle)


@pytest.fixture
def layout(bundle: Path, tmp_path: Path) -> Path:
    pack(bundle, tmp_path / "out.oci", "v1")
    return tmp_path / "out.oci"


def content(root: Path) -> dict[str, bytes]:
    """All that lies below a folder."""
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def blob(layout: Path, descriptor: dict[str, Any]) -> Path:
    return layout / "blobs" / descriptor["digest"].replace(":", "/")


def image(layout: Path) -> dict[str, Any]:
    index = json.loads((layout / "index.json").read_text())
    found: dict[str, Any] = json.loads(blob(layout, index["manifests"][0]).read_text())
    return found


def test_a_bundle_comes_back_as_it_was(bundle: Path, layout: Path, tmp_path: Path) -> None:
    """But for what its manifest does not cover: reports, and what belongs to a machine."""
    manifest = unpack(layout, tmp_path / "back.mdeq")
    assert manifest == open_bundle(tmp_path / "back.mdeq", verify=True).manifest
    back, whole = content(tmp_path / "back.mdeq"), content(bundle)
    assert back.keys() == {"manifest.json", *manifest.files}
    assert all(whole[name] == data for name, data in back.items())


def test_the_same_bundle_gives_the_same_bytes(bundle: Path, layout: Path, tmp_path: Path) -> None:
    for file in bundle.rglob("*"):
        os.utime(file, (0, 0))
    pack(bundle, tmp_path / "again.oci", "v1")
    assert content(tmp_path / "again.oci") == content(layout)


def test_signatures_travel(bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    from edge_mdeq.bundle.reader import read_manifest
    from edge_mdeq.bundle.signature import make_key, read_private_key, sign_manifest

    public, _ = make_key(tmp_path / "key.pem")
    pack(bundle, tmp_path / "unsigned.oci")
    sign_manifest(bundle, read_manifest(bundle), read_private_key(tmp_path / "key.pem"))
    pack(bundle, tmp_path / "signed.oci")
    unpack(tmp_path / "signed.oci", tmp_path / "signed.mdeq", require_signature=public)
    open_bundle(tmp_path / "signed.mdeq", require_signature=public)
    with pytest.raises(BundleError, match="is not signed"):
        unpack(tmp_path / "unsigned.oci", tmp_path / "unsigned.mdeq", require_signature=public)
    assert not (tmp_path / "unsigned.mdeq").exists()


# The specification's rules


def test_the_layout_is_by_the_rules(layout: Path) -> None:
    """https://github.com/opencontainers/image-spec: image-layout.md, image-index.md, manifest.md"""
    assert json.loads((layout / "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}
    index = json.loads((layout / "index.json").read_text())
    assert index["schemaVersion"] == 2
    assert index["mediaType"] == "application/vnd.oci.image.index.v1+json"
    (described,) = index["manifests"]
    assert described["annotations"]["org.opencontainers.image.ref.name"] == "v1"
    assert described["artifactType"] == ARTIFACT_TYPE
    found = image(layout)
    assert (found["schemaVersion"], found["mediaType"]) == (2, described["mediaType"])
    assert found["artifactType"] == ARTIFACT_TYPE
    assert blob(layout, found["config"]).read_bytes() == b"{}"  # the empty descriptor
    assert found["config"]["mediaType"] == "application/vnd.oci.empty.v1+json"
    descriptors = [described, found["config"], *found["layers"]]
    for each in descriptors:
        data = blob(layout, each).read_bytes()
        assert each["digest"] == f"sha256:{hashlib.sha256(data).hexdigest()}"
        assert each["size"] == len(data)
        assert re.fullmatch(r"[a-z0-9!#$&^_.+-]+/[a-z0-9!#$&^_.+-]{1,126}", each["mediaType"])
    there = {path.name for path in (layout / "blobs" / "sha256").iterdir()}
    assert there == {each["digest"].removeprefix("sha256:") for each in descriptors}
    titles = [layer["annotations"][TITLE] for layer in found["layers"]]
    assert len(titles) == len(set(titles))
    assert all(isinstance(value, str) for value in found["annotations"].values())


def test_the_layout_meets_the_specifications_schemas(layout: Path) -> None:
    """Debian's golang-github-opencontainers-image-spec-dev brings them."""
    jsonschema = pytest.importorskip("jsonschema")
    if not SPEC.is_dir():
        pytest.skip(f"{SPEC} is not here")
    from referencing import Registry, Resource
    from referencing.jsonschema import DRAFT4

    schemas = {file.name: json.loads(file.read_text()) for file in SPEC.glob("*.json")}
    registry: Any = Registry()
    for name, schema in schemas.items():
        resource = Resource.from_contents(schema, default_specification=DRAFT4)
        registry = registry.with_resources([(name, resource), (schema.get("id", name), resource)])
        base = schema.get("id", "").rsplit("/", 1)[0]
        for other, content in schemas.items():
            inner = Resource.from_contents(content, default_specification=DRAFT4)
            registry = registry.with_resource(f"{base}/{other}", inner)
    for name, value in (
        ("image-layout-schema.json", json.loads((layout / "oci-layout").read_text())),
        ("image-index-schema.json", json.loads((layout / "index.json").read_text())),
        ("image-manifest-schema.json", image(layout)),
    ):
        check = jsonschema.Draft4Validator(schemas[name], registry=registry)
        check.validate(value)
        with pytest.raises(jsonschema.ValidationError):
            check.validate({})


# Other tools


def run(*command: str | Path) -> str:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def skopeo() -> str:
    found = shutil.which("skopeo")
    if found is None:
        pytest.skip("skopeo is not installed")
    return found


def test_skopeo_copies_it(skopeo: str, bundle: Path, layout: Path, tmp_path: Path) -> None:
    assert json.loads(run(skopeo, "inspect", "--raw", f"oci:{layout}:v1")) == image(layout)
    run(skopeo, "copy", f"oci:{layout}:v1", f"oci:{tmp_path / 'copied.oci'}:v2")
    unpack(tmp_path / "copied.oci", tmp_path / "back.mdeq", tag="v2")
    assert open_bundle(tmp_path / "back.mdeq").manifest == open_bundle(bundle).manifest


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[str]:
    """An ordinary registry on this machine, such as Debian's docker-registry."""
    program = shutil.which("docker-registry")
    if program is None:
        pytest.skip("docker-registry is not installed")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    storage = {"filesystem": {"rootdirectory": str(tmp_path / "registry")}}
    config = {"version": 0.1, "storage": storage, "http": {"addr": f"127.0.0.1:{port}"}}
    (tmp_path / "registry.yml").write_text(json.dumps(config))  # JSON is YAML
    command = [program, "serve", str(tmp_path / "registry.yml")]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            for _ in range(100):
                try:
                    socket.create_connection(("127.0.0.1", port), 1).close()
                    break
                except OSError:
                    time.sleep(0.1)
            yield f"127.0.0.1:{port}"
        finally:
            server.terminate()


def test_a_registry_takes_it_and_gives_it_back(
    skopeo: str, registry: str, bundle: Path, layout: Path, tmp_path: Path
) -> None:
    there = f"docker://{registry}/models/segmenter:v1"
    run(skopeo, "copy", "--dest-tls-verify=false", f"oci:{layout}:v1", there)
    back = tmp_path / "pulled.oci"
    run(skopeo, "copy", "--src-tls-verify=false", there, f"oci:{back}:v1")
    assert image(back) == image(layout)
    unpack(back, tmp_path / "back.mdeq")
    assert open_bundle(tmp_path / "back.mdeq", verify=True).manifest.task == "segmentation"


# What a stranger's layout cannot do


def alter(layout: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the image manifest and make all digests right again."""
    index = json.loads((layout / "index.json").read_text())
    found = image(layout)
    change(found)
    data = json.dumps(found).encode()
    digest = hashlib.sha256(data).hexdigest()
    (layout / "blobs" / "sha256" / digest).write_bytes(data)
    index["manifests"][0] |= {"digest": f"sha256:{digest}", "size": len(data)}
    (layout / "index.json").write_text(json.dumps(index))


def named(name: str) -> Callable[[dict[str, Any]], object]:
    """The last layer calls itself ``name``."""
    return lambda found: found["layers"][-1]["annotations"].update({TITLE: name})


def pointing(layer: int, **changes: object) -> Callable[[dict[str, Any]], object]:
    """A layer (the first is the manifest) has another descriptor."""
    return lambda found: found["layers"][layer].update(changes)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (named("../../outside"), "not a path inside a bundle"),
        (named("/etc/cron.d/x"), "not a path inside a bundle"),
        (named("graphs/../x"), "not a path inside a bundle"),
        (named("./x"), "not a path inside a bundle"),
        (named(""), "not a path inside a bundle"),
        (named("engines/x/solve.engine"), r"disagree about .*engines/x/solve\.engine"),
        (lambda found: found["layers"].pop(), "disagree about"),
        (lambda found: found["layers"].pop(0), "holds no manifest.json"),
        (pointing(0, digest="sha256:../../../etc/passwd"), "is no SHA-256"),
        (pointing(-1, digest="sha256:../../../etc/passwd"), "than the manifest in it says"),
        (pointing(0, digest="sha512:" + "0" * 128), "is no SHA-256"),
        (pointing(-1, digest="sha256:" + "0" * 64), "than the manifest in it says"),
        (pointing(-1, size=-1), "than the manifest in it says"),
        (pointing(0, size=5), "not what its name says"),
        (lambda found: found.update(artifactType="application/x"), "and no bundle"),
        (lambda found: found.pop("artifactType"), "and no bundle"),
        (lambda found: found.update(layers=[3]), "is damaged"),
    ],
)
def test_a_hostile_layout_is_refused_and_leaves_nothing(
    layout: Path, tmp_path: Path, change: Callable[[dict[str, Any]], object], why: str
) -> None:
    alter(layout, change)
    before = content(tmp_path)
    with pytest.raises(BundleError, match=why):
        unpack(layout, tmp_path / "back.mdeq")
    assert content(tmp_path) == before


def spoil(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


def test_a_damaged_blob_is_found(layout: Path, tmp_path: Path) -> None:
    for path in sorted((layout / "blobs" / "sha256").iterdir()):
        whole = path.read_bytes()
        if whole == b"{}":
            continue  # the empty configuration, which nothing reads
        for damaged in (spoil(whole), whole[:-1], whole + b" "):
            path.write_bytes(damaged)
            with pytest.raises(BundleError, match="not what its name says"):
                unpack(layout, tmp_path / "back.mdeq")
        path.write_bytes(whole)
    unpack(layout, tmp_path / "back.mdeq")


def test_links_and_pipes_are_no_blobs(layout: Path, tmp_path: Path) -> None:
    path = blob(layout, image(layout)["layers"][-1])
    path.rename(tmp_path / "outside")
    path.symlink_to(tmp_path / "outside")
    with pytest.raises(BundleError, match="cannot copy"):
        unpack(layout, tmp_path / "back.mdeq")
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(BundleError, match="not what its name says"):
        unpack(layout, tmp_path / "back.mdeq")


@pytest.mark.parametrize("name", ["oci-layout", "index.json"])
@pytest.mark.parametrize(
    "data",
    [b"", b"[]", b"{", b"[" * 100_000, b'{"imageLayoutVersion": "2"}', b'{"a": "\xff"}', b"\xff"],
)
def test_what_is_no_layout_is_refused(layout: Path, tmp_path: Path, name: str, data: bytes) -> None:
    (layout / name).write_bytes(data)
    with pytest.raises(BundleError, match=r"no OCI image|another version|damaged|the tags none"):
        unpack(layout, tmp_path / "back.mdeq")


def test_of_several_tags_one_is_named(layout: Path, tmp_path: Path) -> None:
    index = json.loads((layout / "index.json").read_text())
    second = json.loads(json.dumps(index["manifests"][0]))
    second["annotations"]["org.opencontainers.image.ref.name"] = "v2"
    index["manifests"].append(second)
    (layout / "index.json").write_text(json.dumps(index))
    with pytest.raises(BundleError, match="has the tags 'v1', 'v2'; name one of them"):
        unpack(layout, tmp_path / "back.mdeq")
    with pytest.raises(BundleError, match="has the tags"):
        unpack(layout, tmp_path / "back.mdeq", tag="v3")
    unpack(layout, tmp_path / "back.mdeq", tag="v2")


def test_nothing_is_overwritten_unasked(bundle: Path, layout: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="replace it with --force"):
        pack(bundle, layout)
    pack(bundle, layout, "v2", force=True)
    assert "v2" in (layout / "index.json").read_text()
    (tmp_path / "mine").mkdir()
    for force in (False, True):
        with pytest.raises(BundleError, match="choose another name"):
            pack(bundle, tmp_path / "mine", force=force)
    with pytest.raises(BundleError, match="--force"):
        unpack(layout, bundle)
    with pytest.raises(BundleError, match="is no tag"):
        pack(bundle, tmp_path / "x.oci", "a b")


def test_what_a_killed_one_left_is_removed(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / ".out.oci.4194305.tmp" / "blobs").mkdir(parents=True)  # above any process number
    pack(bundle, tmp_path / "out.oci")
    assert sorted(path.name for path in tmp_path.glob("*out.oci*")) == ["out.oci"]


def test_a_damaged_bundle_is_not_packed(bundle: Path, tmp_path: Path) -> None:
    next(bundle.rglob("weights*.bin")).write_bytes(b"other")
    with pytest.raises(BundleError, match="the manifest says"):
        pack(bundle, tmp_path / "out.oci")
    assert not list(tmp_path.glob("*.oci*"))


def test_the_commands(bundle: Path, tmp_path: Path) -> None:
    def edge_mdeq(*arguments: object) -> str:
        return run(sys.executable, "-m", "edge_mdeq.cli", *map(str, arguments))

    said = edge_mdeq("pack", bundle, "-o", tmp_path / "x.oci", "--tag", "v3")
    assert re.search(r"x\.oci:v3: sha256:[0-9a-f]{64}\n", said)
    assert "files as they were packed" in edge_mdeq("unpack", tmp_path / "x.oci")
    open_bundle(tmp_path / "x.mdeq", verify=True)
