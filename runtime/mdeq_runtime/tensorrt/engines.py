"""Where a bundle's engines lie: ``engines/<fingerprint>/NAME.engine``, and beside it ``NAME.json``.

They lie in the bundle, or in the user's cache where the bundle cannot be written to. The engine is
the plain file that ``trtexec --loadEngine`` takes; the JSON says what it was built from and for,
and its hash. What lacks the JSON, or does not agree with it, is not used. A new engine's lies there
as ``NAME.next.json`` before the engine takes its place, so that a kill in between loses neither.

An engine is code. So its JSON has this device's tag, or is signed by a key that was required of the
bundle; whatever else it claims, an engine without either is a stranger's and is not used.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from edge_mdeq.bundle import Bundle
from edge_mdeq.bundle.precision import chosen
from edge_mdeq.bundle.reader import hash_file
from edge_mdeq.bundle.signature import PrivateKey, sign, signer
from edge_mdeq.errors import DeviceError, EngineError
from edge_mdeq.files import make_folder
from mdeq_runtime.backends.engine_cache import engine_roots
from mdeq_runtime.device_key import canonical, made_here, tag
from mdeq_runtime.policies import FixedIterations, UntilTolerance
from mdeq_runtime.tensorrt.identity import Identity, differences
from mdeq_runtime.tensorrt.records import (
    NEXT,
    EngineRecord,
    confirm,
    read_record,
    record_file,
    write_record,
)
from mdeq_runtime.tensorrt.settings import needed

__all__ = ["EngineStore", "sign_engines"]

PURPOSE = "TensorRT engine"  # of tags and signatures


class EngineStore:
    """The engines of one profile of a bundle.

    Args:
        bundle: the opened bundle.
        profile: which of its profiles.
        identity: of this device and its software, or of those that are built for.
        cache: where else to keep engines than in the bundle; None: the bundle, and the user's cache
            where that cannot be written to.
    """

    def __init__(
        self, bundle: Bundle, profile: str, identity: Identity, cache: Path | None = None
    ) -> None:
        self.bundle, self.identity, self.cache = bundle, identity, cache
        self.profile = bundle.profile(profile)
        self.roots = tuple(self.own(root) for root in engine_roots(bundle.path, cache))

    def own(self, root: Path) -> Path:
        """``root``, or this bundle's folder in it where bundles share it."""
        if root.parent == self.bundle.path:
            return root
        files = self.bundle.manifest.files
        digest = hashlib.sha256(" ".join(sorted(e.sha256 for e in files.values())).encode())
        name = re.sub(r"[^\w.-]+", "-", self.bundle.manifest.name)  # which may hold anything
        return root / f"{name}-{digest.hexdigest()[:12]}"

    @property
    def folder(self) -> Path:
        """Where a new engine goes: the first root that can be written to; it is made if needed.

        Raises:
            EngineError: none can be.
        """
        problems = []
        for root in self.roots:
            folder = root / self.identity.fingerprint
            try:
                make_folder(folder)
            except OSError as error:
                problems.append(f"{root}: {error.strerror}")
                continue
            if os.access(folder, os.W_OK):
                return folder
            problems.append(f"{root}: not writable")
        raise EngineError(
            f"engines cannot be kept anywhere ({'; '.join(problems)}); name a folder with --cache"
        )

    def sources(self, graph: str) -> str:
        """What an engine is built from, as hashes."""
        files = self.bundle.manifest.files
        weights = sorted(files[weights.file].sha256 for weights in self.profile.weights)
        return " ".join([files[graph].sha256, *weights])

    def find(self, graph: str) -> Path:
        """The engine of a graph that fits this device, its hash checked.

        Raises:
            EngineError: there is none; with every difference of those that are there.
        """
        reasons = []
        for path in self.candidates(graph):
            why = self.unfit(graph, path)
            if not why:
                return path
            reasons.append(f"  {path}: {why}")
        build = self.command(graph)
        if reasons:
            raise EngineError(
                f"no engine of {graph} fits this device:\n{os.linesep.join(reasons)}\n"
                f"Build it anew: {build}"
            )
        raise EngineError(f"{graph} has no engine for this device; build it: {build}")

    def command(self, graph: str | None = None) -> str:
        """What builds a graph's engine, if it is named; else those that a run needs by itself."""
        words = ["edge-mdeq", "engine", str(self.bundle.path)]
        rungs = {rung.graph: rung.evaluations for rung in self.profile.rungs}
        manifest = self.bundle.manifest
        usual = chosen(self.profile, None, manifest.precision, manifest.name)
        if graph not in (None, *needed(usual, [FixedIterations(), UntilTolerance()])):
            words += ["--iterations", str(rungs[graph])] if graph in rungs else ["--all"]
        if self.cache is not None:
            words += ["--cache", str(self.cache)]
        return shlex.join(words)

    def candidates(self, graph: str) -> list[Path]:
        """Engines of that name, those in this device's own folder first."""
        name = engine_name(graph)
        found = [path for root in self.roots for path in sorted(root.glob(f"*/{name}"))]
        return sorted(found, key=lambda path: path.parent.name != self.identity.fingerprint)

    def unfit(self, graph: str, path: Path) -> str:
        """Why an engine is not to be used; "" if it is."""
        try:
            record = read_record(record_file(path))
        except EngineError as error:
            return str(error)
        wrong = differences(record.identity, self.identity)
        if why := self.untrusted(record):
            wrong.insert(0, why)
        if record.graph != graph or record.sources != self.sources(graph):
            wrong.append("built from other weights, or another graph")
        if wrong:
            return "; ".join(wrong)
        size = path.stat().st_size
        if size != record.bytes:
            return f"{size} bytes instead of {record.bytes}: cut short, or altered"
        if hash_file(path) != record.sha256:
            return "altered since it was built"
        return ""

    def untrusted(self, record: EngineRecord) -> str:
        """Why an engine is a stranger's; "" if it was built here, or is signed by who may."""
        content, keys = record.content, self.bundle.keys
        if signer(PURPOSE, canonical(content), record.signatures, keys) is not None:
            return ""
        try:
            if made_here(PURPOSE, content, record.tag):
                return ""
        except DeviceError as error:
            return str(error)
        if not record.tag:
            return "built before engines were authenticated; run edge-mdeq engine again"
        return (
            "not built on this device by this user, or altered since, and not signed by a key that "
            "--require-signature names"
        )

    def has(self, graph: str) -> bool:
        """Whether ``find`` would succeed."""
        return any(not self.unfit(graph, path) for path in self.candidates(graph))

    def record(
        self, graph: str, path: Path, settings: dict[str, Any], measured: dict[str, float]
    ) -> EngineRecord:
        """Write down what a new engine is, as built here; only then is it used.

        Raises:
            DeviceError: this device has no key that can be used.
        """
        record = self.announce(graph, path, path, settings, measured)
        confirm(path)
        return record

    def announce(
        self,
        graph: str,
        built: Path,
        path: Path,
        settings: dict[str, Any],
        measured: dict[str, float],
    ) -> EngineRecord:
        """Write down what ``built`` is, as built here, before it becomes ``path``; see ``confirm``.

        Raises:
            DeviceError: this device has no key that can be used.
        """
        record = EngineRecord(
            graph=graph,
            sources=self.sources(graph),
            sha256=hash_file(built),
            bytes=built.stat().st_size,
            identity=self.identity,
            settings=settings,
            measured=measured,
        )
        read = msgspec.json.decode(msgspec.json.encode(record), type=EngineRecord)
        record = replace(read, tag=tag(PURPOSE, read.content))  # numbers as they will be read
        write_record(path.with_suffix(NEXT), record)
        return record

    def path(self, graph: str) -> Path:
        """Where a new engine of ``graph`` goes."""
        return self.folder / engine_name(graph)

    def tidy(self) -> None:
        """Remove what builds that were killed have left."""
        for root in self.roots:
            for left in root.glob("*/.*.tmp"):
                number = left.name.rsplit(".", 2)[-2]
                if number.isdecimal() and not Path("/proc", number).exists():
                    with suppress(OSError):
                        left.unlink()
            for coming in root.glob(f"*/*{NEXT}"):
                path = coming.with_name(coming.name.removesuffix(NEXT) + ".engine")
                with suppress(OSError):
                    confirm(path) if record_file(path) == coming else coming.unlink()


def engine_name(graph: str) -> str:
    """``graphs/tensorrt-10/solve-k2.onnx``'s is ``solve-k2.engine``."""
    return Path(graph).with_suffix(".engine").name


def sign_engines(bundle: Bundle, key: PrivateKey) -> dict[Path, str]:
    """Sign the engines in a bundle that were built here, so that other devices may load them.

    Returns:
        Of each engine why it was not signed; "" if it was. A stranger's is none to vouch for.

    Raises:
        DeviceError: this device has no key that can be used.
        EngineError: a record cannot be written.
    """
    found = {}
    for path in sorted((bundle.path / "engines").glob("*/*.engine")):
        file = record_file(path)
        try:
            record = read_record(file)
            if not made_here(PURPOSE, record.content, record.tag):
                raise EngineError("not built on this device by this user, or altered since")
            if hash_file(path) != record.sha256:
                raise EngineError("altered since it was built")
        except EngineError as error:
            found[path] = str(error)
            continue
        made = sign(PURPOSE, canonical(record.content), key)
        others = tuple(s for s in record.signatures if s.key != made.key)
        try:
            write_record(file, replace(record, signatures=(*others, made)))
        except OSError as error:
            raise EngineError(f"cannot write {file}: {error.strerror}") from error
        found[path] = ""
    return found
