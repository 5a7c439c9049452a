"""A bundle is whole, or it is refused by name."""

import json

import pytest

from adrec.bundle import open_bundle, save_bundle, write_json
from adrec.errors import BundleError


@pytest.fixture
def bundle(tmp_path):
    path = tmp_path / "bundle"
    with save_bundle(path, seed=7, data_fingerprint="abc") as folder:
        write_json({"a": 1}, folder / "schema.json")
        (folder / "encoder").mkdir()
        (folder / "encoder" / "weights.safetensors").write_bytes(b"0123456789")
    return path


def test_round_trip(bundle):
    opened = open_bundle(bundle)
    assert opened.manifest["seed"] == 7 and opened.manifest["data_fingerprint"] == "abc"
    assert opened.json("schema.json") == {"a": 1}
    assert opened.has("encoder/") and opened.has("encoder/weights.safetensors") and not opened.has("baselines/")
    with pytest.raises(BundleError, match=r"no features\.json"):
        opened.file("features.json")


@pytest.mark.parametrize("name", ["schema.json", "encoder/weights.safetensors"])
def test_a_missing_file_is_named(bundle, name):
    (bundle / name).unlink()
    with pytest.raises(BundleError, match=f"{name} is missing"):
        open_bundle(bundle)


@pytest.mark.parametrize("content", [b"0123456780", b"012345678", b""])
def test_an_altered_file_is_named(bundle, content):
    (bundle / "encoder" / "weights.safetensors").write_bytes(content)
    with pytest.raises(BundleError, match=r"weights\.safetensors was altered"):
        open_bundle(bundle)


def test_another_version_a_broken_manifest_and_no_bundle_at_all(bundle, tmp_path):
    manifest = json.loads((bundle / "bundle.json").read_text())
    (bundle / "bundle.json").write_text(json.dumps({**manifest, "format_version": 99}))
    with pytest.raises(BundleError, match="format 99 is of a later adrec, this one reads .*Update it"):
        open_bundle(bundle)
    (bundle / "bundle.json").write_text("{")
    with pytest.raises(BundleError, match="cannot be read"):
        open_bundle(bundle)
    with pytest.raises(BundleError, match="not a bundle"):
        open_bundle(tmp_path / "nowhere")


def test_a_bundle_that_names_files_outside_itself_is_refused(bundle):
    manifest = json.loads((bundle / "bundle.json").read_text())
    manifest["files"]["../../etc/passwd"] = {"sha256": "0", "bytes": 1}
    (bundle / "bundle.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="outside the folder"):
        open_bundle(bundle)


def test_a_failure_leaves_the_earlier_bundle(bundle):
    before = open_bundle(bundle).fingerprint
    with pytest.raises(RuntimeError), save_bundle(bundle, seed=8) as folder:
        (folder / "half").write_text("x")
        raise RuntimeError
    assert open_bundle(bundle).fingerprint == before
    assert [path.name for path in bundle.parent.iterdir()] == ["bundle"]


def _listed(bundle, name, content=b"x"):
    """A bundle whose manifest vouches for one more file, as a stranger would write it."""
    import hashlib

    (bundle / name).parent.mkdir(exist_ok=True, parents=True)
    (bundle / name).write_bytes(content)
    manifest = json.loads((bundle / "bundle.json").read_text())
    manifest["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    (bundle / "bundle.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    "name", ["encoder/pytorch_model.bin", "encoder/modeling.py", "state.pkl", "encoder/adapter_config.json"]
)
def test_kinds_of_files_that_can_run_code_or_lead_elsewhere_are_refused(bundle, name):
    _listed(bundle, name)
    with pytest.raises(BundleError, match="no bundle may have"):
        open_bundle(bundle)


def test_a_file_that_nobody_vouches_for_is_not_read(bundle):
    (bundle / ".DS_Store").write_text("of the system")
    (bundle / "encoder" / ".DS_Store").write_text("of the system")
    open_bundle(bundle)
    (bundle / "encoder" / "config.json").write_text("{}")
    with pytest.raises(BundleError, match=r"does not list 'encoder/config\.json'"):
        open_bundle(bundle)


def test_links_inside_are_refused_and_a_link_to_the_bundle_is_not(bundle, tmp_path):
    (tmp_path / "current").symlink_to(bundle)
    assert open_bundle(tmp_path / "current").fingerprint == open_bundle(bundle).fingerprint
    weights = bundle / "encoder" / "weights.safetensors"
    weights.rename(bundle / "encoder" / "there.safetensors")
    weights.symlink_to("there.safetensors")
    with pytest.raises(BundleError, match="is a link"):
        open_bundle(bundle)


@pytest.mark.parametrize("files", [[], "x", {"a": 1}, {"a": {"sha256": "0", "bytes": "many"}}, None])
def test_a_manifest_of_another_shape_is_refused_in_a_line(bundle, files):
    manifest = json.loads((bundle / "bundle.json").read_text())
    (bundle / "bundle.json").write_text(json.dumps({**manifest, "files": files}))
    with pytest.raises(BundleError, match="cannot be read"):
        open_bundle(bundle)


def test_deep_nesting_is_refused_in_a_line(bundle):
    (bundle / "bundle.json").write_text("[" * 200_000)
    with pytest.raises(BundleError, match="cannot be read"):
        open_bundle(bundle)
