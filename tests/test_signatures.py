"""Signed bundles: whoever trusts a key opens its bundles and no others, and minisign's own files are read."""

import base64
import hashlib
import json
import shutil
import subprocess

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import worlds
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from daily_world import DailyWorld
from typer.testing import CliRunner

from adrec.bundle import MANIFEST, open_bundle, save_bundle, trusting
from adrec.cli.app import app
from adrec.config.base import load_config
from adrec.config.training.daily import DailyConfig
from adrec.data.disk.outputs import BUNDLE, guard_output
from adrec.data.disk.signatures import SUFFIX, SignatureError, check_signature, make_key, read_public_key, sign
from adrec.errors import BundleError, ConfigError
from adrec.stages.registry import daily
from adrec.stages.training.pretraining.distill_bundle import copy_all_but_encoder
from adrec.terminal import Terminal


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("signed")
    worlds.make_world(made / "prepared", users=30, requests=200)
    worlds.make_bundle(made)
    return made


@pytest.fixture
def bundle(folder, tmp_path):
    shutil.copytree(folder / "bundle", tmp_path / "bundle")
    make_key(tmp_path / "own.key")
    make_key(tmp_path / "other.key")
    return tmp_path / "bundle"


def test_only_bundles_signed_by_a_trusted_key_are_opened(bundle, tmp_path):
    own, other = tmp_path / "own.key.pub", tmp_path / "other.key.pub"
    with trusting([own]), pytest.raises(BundleError, match="not signed"):
        open_bundle(bundle)
    sign(bundle / MANIFEST, tmp_path / "own.key")
    with trusting([own]):
        assert open_bundle(bundle)
        with trusting([]):  # nothing more is said: what was trusted still is all
            assert open_bundle(bundle)
    with trusting([other, own]):
        assert open_bundle(bundle)
    with trusting([other]), pytest.raises(BundleError, match="none of the trusted keys"):
        open_bundle(bundle)
    assert open_bundle(bundle)  # whoever asks for no key opens any


@pytest.mark.parametrize("deed", ["weights", "manifest", "comment", "signature", "cut", "empty", "binary", "swapped"])
def test_any_change_ends_the_signature(bundle, tmp_path, deed):
    written, _ = sign(bundle / MANIFEST, tmp_path / "own.key")
    lines = written.read_text(encoding="utf-8").splitlines()
    if deed in ("weights", "manifest"):
        weights = bundle / "model.safetensors"
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
    if deed == "manifest":  # a stranger who changes a file mends the list of digests too
        manifest = json.loads((bundle / MANIFEST).read_text(encoding="utf-8"))
        manifest["files"]["model.safetensors"]["sha256"] = hashlib.sha256(content).hexdigest()
        (bundle / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
        assert open_bundle(bundle)
    elif deed == "comment":
        lines[2] += " and more"
    elif deed == "signature":
        raw = bytearray(base64.b64decode(lines[1]))
        raw[-1] ^= 1
        lines[1] = base64.b64encode(raw).decode()
    elif deed == "cut":
        lines = lines[:2]
    elif deed == "empty":
        lines = []
    elif deed == "swapped":  # another key's signature under this key's number
        sign(bundle / MANIFEST, tmp_path / "other.key")
        theirs = base64.b64decode(written.read_text(encoding="utf-8").splitlines()[1])
        lines[1] = base64.b64encode(base64.b64decode(lines[1])[:10] + theirs[10:]).decode()
    written.write_bytes(b"\xff\xfe" if deed == "binary" else "\n".join(lines).encode())
    with trusting([tmp_path / "own.key.pub"]), pytest.raises(BundleError):
        open_bundle(bundle)


def test_the_format_is_minisigns(tmp_path):
    """A signature laid out by hand as minisign documents it, also of the legacy (unhashed) kind, verifies."""
    secret = Ed25519PrivateKey.generate()
    raw = secret.public_key().public_bytes_raw()
    number, content = b"12345678", b"what is signed"
    public = tmp_path / "minisign.pub"
    public.write_text(
        f"untrusted comment: minisign public key\n{base64.b64encode(b'Ed' + number + raw).decode()}\n", encoding="utf-8"
    )
    key = read_public_key(public)
    for kind, signed in ((b"ED", secret.sign(hashlib.blake2b(content).digest())), (b"Ed", secret.sign(content))):
        comment = "timestamp:1\tfile:x"
        lines = ["untrusted comment: x", base64.b64encode(kind + number + signed).decode(), f"trusted comment: {comment}",
                 base64.b64encode(secret.sign(signed + comment.encode())).decode()]  # fmt: skip
        file = tmp_path / "x.minisig"
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
        assert check_signature(content, file, [key]) == key
        with pytest.raises(SignatureError, match="not what was signed"):
            check_signature(content + b"!", file, [key])


@pytest.mark.skipif(shutil.which("minisign") is None, reason="no minisign here")
def test_minisign_takes_our_signatures(bundle, tmp_path):
    sign(bundle / MANIFEST, tmp_path / "own.key")
    command = ["minisign", "-V", "-p", tmp_path / "own.key.pub", "-m", bundle / MANIFEST]
    assert subprocess.run(command, check=False, capture_output=True).returncode == 0


def test_the_commands(folder, bundle, tmp_path):
    def adrec(*words):
        return CliRunner().invoke(app, [str(word) for word in words])

    made = adrec("sign", "--bundle", bundle, "--key", tmp_path / "release.key", "--make-key")
    assert made.exit_code == 0, made.output
    assert (tmp_path / "release.key").stat().st_mode & 0o077 == 0 and (bundle / (MANIFEST + SUFFIX)).exists()
    again = adrec("sign", "--bundle", bundle, "--key", tmp_path / "release.key", "--make-key")
    assert again.exit_code == 1 and "is there already" in again.output
    scoring = ["score", "--bundle", bundle, "--set", f"prepared={folder}/prepared", "--set", "split=test", "--quiet"]
    fine = adrec(*scoring, "--output", tmp_path / "scored.parquet", "--trusted-key", tmp_path / "release.key.pub")
    assert fine.exit_code == 0, fine.output
    assert np.isfinite(pq.read_table(tmp_path / "scored.parquet")["score"].to_numpy()).all()
    refused = adrec(*scoring, "--output", tmp_path / "no.parquet", "--trusted-key", tmp_path / "other.key.pub")
    assert refused.exit_code == 1 and "none of the trusted keys" in refused.output and not (tmp_path / "no.parquet").exists()
    wrong = adrec(*scoring, "--output", tmp_path / "no.parquet", "--trusted-key", tmp_path / "release.key")
    assert wrong.exit_code == 1 and "is no public key" in wrong.output
    (bundle / "model.safetensors").write_bytes(b"x")
    broken = adrec("sign", "--bundle", bundle, "--key", tmp_path / "release.key")
    assert broken.exit_code == 1 and "altered" in broken.output
    assert adrec("sign", "--key", tmp_path / "release.key").exit_code == 1


@pytest.mark.parametrize("command", ["score", "rank", "encode", "explain", "export", "inspect", "finetune", "distill", "serve"])
def test_every_command_that_opens_a_bundle_refuses_one_that_nobody_signed(folder, bundle, tmp_path, command):
    prepared = f"prepared={folder}/prepared"
    words = {
        "inspect": ["inspect", bundle],
        "finetune": ["finetune", "--set", prepared, "--set", f"start_from={bundle}", "--output", tmp_path / "out"],
        "distill": ["distill", "--set", prepared, "--bundle", bundle, "--output", tmp_path / "out"],
        "serve": ["serve", "--set", prepared, "--bundle", bundle, "--set", f"store={tmp_path}/out", "--port", "0"],
        "encode": ["encode", "--set", prepared, "--bundle", bundle, "--output", tmp_path / "out"],
    }.get(command, [command, "--bundle", bundle, "--set", prepared, "--set", "split=test", "--output", tmp_path / "out"])
    for key, told in (("own.key.pub", "it is not signed"), ("nobody.pub", "nobody.pub")):
        done = CliRunner().invoke(app, [*map(str, words), "--quiet", "--trusted-key", str(tmp_path / key)])
        assert done.exit_code == 1 and told in done.output, done.output
        assert not (tmp_path / "out").exists() or command == "serve"


def test_a_day_goes_on_from_a_signed_champion_alone_and_signs_its_own(tmp_path):
    make_key(tmp_path / "own.key")
    settings = {"signing_key": str(tmp_path / "own.key"), "trusted_keys": [str(tmp_path / "own.key.pub")]}
    world = DailyWorld(tmp_path, impressions=3000, daily=settings)

    def day():
        return daily.run(load_config(world.config, DailyConfig), Terminal(quiet=True))

    world.arrive(8)
    first = day()
    with trusting([tmp_path / "own.key.pub"]):
        assert open_bundle(tmp_path / "registry" / "bundles" / first.champion)
    world.arrive(1)
    (tmp_path / "registry" / "bundles" / first.champion / (MANIFEST + SUFFIX)).unlink()
    with pytest.raises(BundleError, match="not signed"):
        day()
    sign(tmp_path / "registry" / "bundles" / first.champion / MANIFEST, tmp_path / "own.key")
    assert day().name != first.name


def test_python_opens_signed_bundles_alone_where_keys_are_named(folder, bundle, tmp_path):
    import adrec

    with pytest.raises(BundleError, match="not signed"):
        adrec.load(bundle, trusted_keys=[tmp_path / "own.key.pub"])
    sign(bundle / MANIFEST, tmp_path / "own.key")
    assert adrec.load(bundle, prepared=folder / "prepared", trusted_keys=[tmp_path / "own.key.pub"])


def test_a_signed_bundle_is_distilled_and_the_student_is_signed_by_nobody(tmp_path):
    teacher = tmp_path / "teacher"
    with save_bundle(teacher, seed=1) as made:
        (made / "config.yaml").write_text("a: 1\n")
    make_key(tmp_path / "own.key")
    sign(teacher / MANIFEST, tmp_path / "own.key")
    with save_bundle(tmp_path / "student", seed=1) as made:
        copy_all_but_encoder(open_bundle(teacher), made)
    assert open_bundle(tmp_path / "student") and not (tmp_path / "student" / (MANIFEST + SUFFIX)).exists()


def test_a_key_that_is_none(tmp_path):
    pq.write_table(pa.table({"x": [1]}), tmp_path / "table")
    (tmp_path / "rsa.pem").write_text("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", encoding="utf-8")
    for name in ("table", "rsa.pem", "nothing"):
        with pytest.raises(ConfigError):
            sign(tmp_path / "table", tmp_path / name)
        with pytest.raises(ConfigError):
            read_public_key(tmp_path / name)


def test_a_signed_bundle_is_replaced_as_any_other(folder, tmp_path):
    """Its signature is adrec's own file, and goes with the bundle that it is of."""
    shutil.copytree(folder / "prepared", tmp_path / "prepared")
    shutil.copytree(folder / "bundle", tmp_path / "bundle")
    make_key(tmp_path / "own.key")
    sign(tmp_path / "bundle" / MANIFEST, tmp_path / "own.key")
    guard_output(tmp_path / "bundle", BUNDLE, ())
