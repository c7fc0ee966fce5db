"""``edge-mdeq sign``: who made a bundle, so that a device can ask for it."""

from __future__ import annotations

from pathlib import Path

import typer

from edge_mdeq.cli.console import next_step
from edge_mdeq.errors import BundleError, ConfigError

__all__ = ["REQUIRE_SIGNATURE", "required", "sign"]

REQUIRE_SIGNATURE = typer.Option(
    [],
    "--require-signature",
    envvar="EDGE_MDEQ_REQUIRE_SIGNATURE",
    help="A public key, NAME.pub: only a bundle that it has signed is taken. May be repeated, as "
    "while keys are exchanged; in the variable with : between them.",
    show_envvar=True,
)


def required(keys: list[Path]) -> list[Path] | None:
    """What ``open_bundle`` takes: None where no signature is asked for."""
    return keys or None


def sign(
    bundle: Path = typer.Argument(None, help="The bundle, NAME.mdeq."),
    key: Path = typer.Option(None, help="The private key, NAME.pem."),
    new_key: Path = typer.Option(
        None, "--new-key", help="Make a private key in this file, and NAME.pub beside it."
    ),
) -> None:
    """Sign a bundle, or make a key to sign with.

    The signature is over the manifest, which holds the hashes of all files. Engines that were built
    here are signed as well.
    """
    from edge_mdeq.bundle.signature import make_key

    if new_key is not None:
        if bundle is not None or key is not None:
            raise ConfigError("--new-key makes a key and signs nothing; sign with --key afterwards")
        public, made = make_key(new_key)
        typer.echo(f"{new_key}: the private key {made.id}; keep it off devices")
        typer.echo(f"{public}: the public key, for devices")
        next_step("edge-mdeq", "sign", "NAME.mdeq", "--key", str(new_key))
        return
    if bundle is None or key is None:
        raise ConfigError("say what to sign and with what: edge-mdeq sign NAME.mdeq --key KEY.pem")
    sign_bundle(bundle, key)
    next_step("edge-mdeq", "run", str(bundle), "0", "--require-signature", f"{key.stem}.pub")


def sign_bundle(bundle: Path, key: Path) -> None:
    """Sign the manifest as it is, once all files have been found to be what it says."""
    from edge_mdeq.bundle import open_bundle
    from edge_mdeq.bundle.decoding import decode_manifest
    from edge_mdeq.bundle.reader import read_manifest
    from edge_mdeq.bundle.signature import SIGNATURE, read_private_key, sign_manifest
    from mdeq_runtime.tensorrt.engines import sign_engines

    private = read_private_key(key)
    raw = read_manifest(bundle)
    opened = open_bundle(bundle, verify=True)
    if decode_manifest(raw, str(bundle)) != opened.manifest:
        raise BundleError(f"{bundle} has changed while it was looked at; sign it again")
    sign_manifest(bundle, raw, private)
    typer.echo(f"{bundle / SIGNATURE}: by key {private.public.id}")
    for path, why in sign_engines(opened, private).items():
        typer.echo(f"{path}: signed" if not why else f"{path}: not signed: {why}")
