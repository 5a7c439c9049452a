"""Every command on object storage, against a real S3 server on loopback, and inputs from a real web server."""

import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import raw_worlds
from pages import ROOT, arguments_of, command_lines
from ports import free_port
from pyarrow import fs

from adrec.config.base import load_config
from adrec.config.data.preprocess import PreprocessConfig
from adrec.config.inference.score import ScoreConfig
from adrec.data.disk.outputs import BUNDLE, PREPARED
from adrec.data.remote import publishing, stores
from adrec.data.remote.fetching import fetch
from adrec.data.remote.publishing import bring_down, publish
from adrec.errors import DataError, ResourceError
from adrec.urls import address_of, local_of, shown

pytest.importorskip("moto")

SMALL = [
    "text.reference=null",
    "text.lexical=0",
    "model.width=8",
    "training.epochs=1",
    "baselines.names=[]",
    "hybrid.kind=none",
]


@pytest.fixture(scope="module")
def server():
    port = free_port()
    program = f"from moto.server import main; main(['-H', '127.0.0.1', '-p', '{port}'])"
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(200):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.1)
    yield f"http://127.0.0.1:{port}"
    process.kill()
    process.wait()


@pytest.fixture
def store(server, tmp_path, monkeypatch):
    """A bucket of its own for each test: its name, and a connection beside adrec's."""
    variables = {
        "AWS_ENDPOINT_URL": server, "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_EC2_METADATA_DISABLED": "true", "ADREC_REMOTE_CACHE": str(tmp_path / "mirror"),
    }  # fmt: skip
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    stores._connected.cache_clear()
    system = fs.S3FileSystem(
        access_key="key", secret_key="secret", endpoint_override=server, region="us-east-1", allow_bucket_creation=True
    )
    bucket = f"b{os.urandom(6).hex()}"
    system.create_dir(bucket)
    yield bucket, system
    stores._connected.cache_clear()


def names(system, place):
    infos = system.get_file_info(fs.FileSelector(place, recursive=True, allow_not_found=True))
    return sorted(info.path.removeprefix(f"{place}/") for info in infos if info.type == fs.FileType.File)


def put(system, place, data):
    with system.open_output_stream(place) as stream:
        stream.write(data)


def get(system, place):
    with system.open_input_file(place) as stream:
        return stream.read()


def upload(system, table, place, folder):
    put(system, place, raw_worlds.write(table, folder / Path(place).name).read_bytes())


def adrec(*arguments, cwd, **how):
    command = [sys.executable, "-m", "adrec", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, **how)


def prepare(bucket, cwd, *more):
    return adrec(
        "preprocess", "--set", f"output=s3://{bucket}/runs/prepared", "--set", f"source.impressions.files=s3://{bucket}/log/*.csv",
        "--set", "source.format=tables", "--set", f"source.ads.files=s3://{bucket}/ads.parquet", "--set", "tokenizer.kind=none",
        *more, cwd=cwd,
    )  # fmt: skip


@pytest.fixture
def world(store, tmp_path):
    bucket, system = store
    tables = raw_worlds.tables(requests=80)
    half = tables["impressions"].num_rows // 2
    upload(system, tables["impressions"].slice(0, half), f"{bucket}/log/a.csv", tmp_path)
    upload(system, tables["impressions"].slice(half), f"{bucket}/log/b.csv", tmp_path)
    upload(system, tables["ads"], f"{bucket}/ads.parquet", tmp_path)
    return bucket, system, tables


def test_the_whole_life_from_bucket_to_bucket(world, tmp_path):
    bucket, system, tables = world
    done = prepare(bucket, tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"s3://{bucket}/runs/prepared" in done.stdout and "mirror" not in done.stdout + done.stderr
    manifest = json.loads(get(system, f"{bucket}/runs/prepared/manifest.json"))
    assert sum(part["rows"] for part in manifest["splits"].values()) == tables["impressions"].num_rows
    assert set(names(system, f"{bucket}/runs/prepared")) >= {"manifest.json", *manifest["files"]}
    assert str(tmp_path) not in get(system, f"{bucket}/runs/prepared/config.yaml").decode()
    settings = [part for one in SMALL for part in ("--set", one)]
    done = adrec(
        "finetune",
        "--set",
        f"prepared=s3://{bucket}/runs/prepared",
        "--set",
        f"output=s3://{bucket}/runs/bundle",
        *settings,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    done = adrec(
        "score", "--bundle", f"s3://{bucket}/runs/bundle", "--set", f"prepared=s3://{bucket}/runs/prepared",
        "--set", f"impressions=s3://{bucket}/log", "-o", f"s3://{bucket}/runs/scored.parquet", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    scored = pq.read_table(pa.BufferReader(get(system, f"{bucket}/runs/scored.parquet")))
    assert scored.num_rows == tables["impressions"].num_rows and "score" in scored.column_names
    done = adrec("evaluate", f"s3://{bucket}/runs/scored.parquet", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "metrics.json" in names(system, f"{bucket}/runs/scored_evaluation")
    assert names(system, f"{bucket}/runs/scored.parquet") == [] and ".adrec" not in " ".join(names(system, bucket))
    rank = ["rank", "--bundle", f"s3://{bucket}/runs/bundle", "-o", f"s3://{bucket}/runs/lists.parquet"]
    rank += ["--set", f"prepared=s3://{bucket}/runs/prepared", "--top-n", "3"]
    done = adrec(*rank, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = adrec(
        "evaluate", f"s3://{bucket}/runs/lists.parquet", cwd=tmp_path, env={**os.environ, "ADREC_REMOTE_CACHE": "other"}
    )
    assert done.returncode == 0, done.stderr
    recall = json.loads(get(system, f"{bucket}/runs/lists.parquet.recall.json"))
    assert (
        json.loads(get(system, f"{bucket}/runs/lists_evaluation/metrics.json"))["candidate_recall"]
        == recall["candidate_recall"]
    )
    assert adrec(*rank, "--set", "recall_requests=0", cwd=tmp_path).returncode == 0
    assert not [name for name in names(system, f"{bucket}/runs") if name.endswith("recall.json")], "that of the earlier lists"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "ads.parquet", "b.csv", "mirror", "other"]


def test_the_pages_commands_run_as_printed(world, tmp_path):
    """Those of docs/how-to/object-storage.md, with a bucket that is there in place of `shop`."""
    bucket, system, tables = world
    upload(system, tables["impressions"].slice(0, 20), f"{bucket}/new/day.csv", tmp_path)
    for line in command_lines(ROOT / "docs/how-to/object-storage.md"):
        arguments, _ = arguments_of(line.replace("s3://shop/", f"s3://{bucket}/"))
        done = adrec(*arguments, cwd=tmp_path)
        assert done.returncode == 0, (line, done.stderr)
    assert pq.read_table(pa.BufferReader(get(system, f"{bucket}/runs/scored.parquet"))).num_rows == 20


def test_init_writes_addresses(world, tmp_path):
    bucket, _, _ = world
    done = adrec("init", f"s3://{bucket}/log", f"s3://{bucket}/ads.parquet", "--output", "c", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "c/preprocess.yaml").read_text()
    assert f"s3://{bucket}/log" in text and f"s3://{bucket}/ads.parquet" in text and "mirror" not in text
    assert adrec("preprocess", "--config", "c/preprocess.yaml", cwd=tmp_path).returncode == 0


def test_another_machine_goes_on_and_old_files_go(world, tmp_path, monkeypatch):
    bucket, system, tables = world
    assert prepare(bucket, tmp_path).returncode == 0
    before = json.loads(get(system, f"{bucket}/runs/prepared/manifest.json"))
    monkeypatch.setenv("ADREC_REMOTE_CACHE", str(tmp_path / "other"))
    system.delete_file(f"{bucket}/log/b.csv")
    again = prepare(bucket, tmp_path, "--set", "history.max_clicks=3")
    assert again.returncode == 0, again.stderr
    after = json.loads(get(system, f"{bucket}/runs/prepared/manifest.json"))
    assert after["fingerprint"] != before["fingerprint"]
    assert set(names(system, f"{bucket}/runs/prepared")) == {"manifest.json", *after["files"]}
    assert not (tmp_path / f"other/s3/{bucket}/log/b.csv").exists()


def test_killed_while_publishing_readers_refuse_and_a_rerun_finishes(world, tmp_path, monkeypatch):
    bucket, system, _ = world
    assert prepare(bucket, tmp_path).returncode == 0
    first = get(system, f"{bucket}/runs/prepared/manifest.json")
    address, place = f"s3://{bucket}/runs/prepared", f"{bucket}/runs/prepared"
    program = (
        "import os, sys\nfrom adrec.data.remote import publishing\nmove, left = publishing._move, [int(sys.argv.pop())]\n"
        "def dying(*place):\n    left[0] -= 1\n    if left[0] < 0:\n        os.kill(os.getpid(), 9)\n    return move(*place)\n"
        "publishing._move = dying\nfrom adrec.cli.app import main\nmain()\n"
    )
    for moves in (0, 2, 7):
        change = ["--set", f"history.max_clicks={moves + 3}"]
        arguments = [
            "preprocess", "--set", f"output={address}", "--set", f"source.impressions.files=s3://{bucket}/log/*.csv",
            "--set", "source.format=tables", "--set", f"source.ads.files=s3://{bucket}/ads.parquet",
            "--set", "tokenizer.kind=none", *change, str(moves),
        ]  # fmt: skip
        died = subprocess.run([sys.executable, "-c", program, *arguments], cwd=tmp_path, capture_output=True, timeout=300)
        assert died.returncode == -signal.SIGKILL, died.stderr
        with pytest.raises(ResourceError, match="is being replaced by another version"):
            fetch(address)
        again = prepare(bucket, tmp_path, *change)
        assert again.returncode == 0, again.stderr
        assert "published. An earlier run had made it" in again.stdout
        manifest = json.loads(get(system, f"{place}/manifest.json"))
        assert set(names(system, place)) == {"manifest.json", *manifest["files"]}
        assert manifest != json.loads(first)
        fetch(address)


def test_killed_while_uploading_the_earlier_output_stays_whole(world, tmp_path, monkeypatch):
    bucket, system, _ = world
    assert prepare(bucket, tmp_path).returncode == 0
    place = f"{bucket}/runs/prepared"
    before = {name: get(system, f"{place}/{name}") for name in names(system, place)}
    local = local_of(f"s3://{place}")
    (local / "manifest.json").write_text((local / "manifest.json").read_text() + " ")

    def failing(system, source, target, whole=publishing._put):
        if source.name == "manifest.json":
            raise OSError("curlCode: 56, Failure when receiving data from the peer")
        whole(system, source, target)

    monkeypatch.setattr(publishing, "_put", failing)
    with pytest.raises(ResourceError, match=r"^s3://.*/runs/prepared: cannot be reached"):
        publish(local)
    monkeypatch.undo()
    kept = {name: get(system, f"{place}/{name}") for name in names(system, place) if not name.startswith(".adrec-upload-")}
    assert kept == before


def test_an_output_replaces_only_what_adrec_wrote(store, tmp_path):
    bucket, system = store
    put(system, f"{bucket}/photos/a.jpg", b"mine")
    put(system, f"{bucket}/photos/manifest.json", b'{"album": 1}')
    with pytest.raises(ResourceError, match=r"photos: holds a\.jpg, and is not a prepared folder that adrec wrote"):
        bring_down(f"s3://{bucket}/photos", PREPARED)
    with pytest.raises(ResourceError, match="is a whole bucket"):
        bring_down(f"s3://{bucket}", BUNDLE)
    with pytest.raises(ResourceError, match="is a file, and the output is a bundle"):
        bring_down(f"s3://{bucket}/photos/a.jpg", BUNDLE)
    with pytest.raises(ResourceError, match="a web server is only read"):
        bring_down("http://127.0.0.1:1/x", BUNDLE)
    bring_down(f"s3://{bucket}/nothing/here", BUNDLE)
    assert names(system, f"{bucket}/photos") == ["a.jpg", "manifest.json"]
    put(system, f"{bucket}/notes.parquet", b"PAR1 not scores")
    done = adrec("sample", "--out", f"s3://{bucket}/photos", "--set", "impressions=200", cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.startswith(f"error: s3://{bucket}/photos: holds ")
    assert len(done.stderr.splitlines()) == 1


def test_only_what_changed_is_fetched(store, tmp_path):
    bucket, system = store
    put(system, f"{bucket}/in/a.csv", b"x\n1\n")
    put(system, f"{bucket}/in/deep/b.csv", b"x\n2\n")
    local = local_of(f"s3://{bucket}/in")
    assert [file.local for file in fetch(f"s3://{bucket}/in")] == [local / "a.csv", local / "deep/b.csv"]
    stamps = {path: path.stat().st_ino for path in local.rglob("*.csv")}
    put(system, f"{bucket}/in/a.csv", b"x\n3\n")
    fetch(f"s3://{bucket}/in")
    assert (local / "a.csv").read_bytes() == b"x\n3\n"
    assert (local / "deep/b.csv").stat().st_ino == stamps[local / "deep/b.csv"]
    (local / "a.csv").write_bytes(b"altered here")
    fetch(f"s3://{bucket}/in/*.csv")
    assert (local / "a.csv").read_bytes() == b"x\n3\n" and (local / "deep/b.csv").exists()
    assert [file.address for file in fetch(f"s3://{bucket}/**/b.csv")] == [f"s3://{bucket}/in/deep/b.csv"]
    system.delete_file(f"{bucket}/in/deep/b.csv")
    fetch(f"s3://{bucket}/in")
    assert sorted(path.name for path in local.rglob("*") if path.is_file()) == ["a.csv"]


def test_faults_are_one_line_each(store, tmp_path, monkeypatch):
    bucket, _ = store
    with pytest.raises(DataError, match=rf"^s3://{bucket}/none\.csv: no such file, folder or bucket\. Look at the address\.$"):
        fetch(f"s3://{bucket}/none.csv")
    with pytest.raises(DataError, match="no such file, folder or bucket"):
        fetch("s3://no-such-bucket-anywhere/x.csv")
    local = local_of("s3://no-such-bucket-anywhere/x.csv")
    local.parent.mkdir(parents=True)
    local.write_text("x")
    with pytest.raises(ResourceError, match="no such bucket") as fault:
        publish(local)
    assert "\n" not in str(fault.value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    stores._connected.cache_clear()
    with pytest.raises(ResourceError, match=r"^s3://x-y-z/a: cannot be reached\. Look at the network"):
        fetch("s3://x-y-z/a")
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT", raising=False)
    with pytest.raises(ResourceError, match=r"^az://box/a: set AZURE_STORAGE_ACCOUNT in the environment\.$"):
        fetch("az://box/a")


@pytest.fixture
def web(tmp_path):
    """A folder served over HTTP; what is asked for is noted."""
    folder, asked = tmp_path / "served", []
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=str(folder))

        def log_message(self, *_):
            asked.append(f"{self.command} {self.path}")

        def do_POST(self):
            self.send_error(403)

        do_PUT = do_POST

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}", folder, asked
        running.shutdown()


def test_inputs_come_from_a_web_server(web, tmp_path, monkeypatch):
    url, folder, asked = web
    monkeypatch.setenv("ADREC_REMOTE_CACHE", str(tmp_path / "mirror"))
    tables = raw_worlds.tables(requests=60)
    raw_worlds.write(tables["impressions"], folder / "log.csv")
    raw_worlds.write(tables["ads"], folder / "ads.jsonl")
    settings = [
        "output=prepared", f"source.impressions.files='{url}/log.csv?key=secret'", "source.format=tables",
        f"source.ads.files={url}/ads.jsonl", "tokenizer.kind=none",
    ]  # fmt: skip
    arguments = [part for one in settings for part in ("--set", one)]
    done = adrec("preprocess", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "prepared/manifest.json").read_text())
    assert sum(part["rows"] for part in manifest["splits"].values()) == tables["impressions"].num_rows
    assert "secret" not in (tmp_path / "prepared/config.yaml").read_text() + done.stdout + done.stderr
    fetched = [line for line in asked if line.startswith("GET")]
    assert len(fetched) == 2
    assert adrec("preprocess", *arguments, cwd=tmp_path).returncode == 0
    assert [line for line in asked if line.startswith("GET")] == fetched
    with pytest.raises(DataError, match=rf"^{url}/none\.csv: the server answers 404 File not found\. Look at the address\.$"):
        fetch(f"{url}/none.csv")


def test_denied_is_said(store, web, monkeypatch):
    url, _, _ = web
    bucket, _ = store
    local = local_of(f"s3://{bucket}/x.bin")
    local.parent.mkdir(parents=True)
    local.write_bytes(b"x")
    monkeypatch.setenv("AWS_ENDPOINT_URL", url)
    stores._connected.cache_clear()
    with pytest.raises(ResourceError, match=r": denied\. Set the store's credentials") as fault:
        publish(local)
    assert "\n" not in str(fault.value)


@pytest.mark.parametrize(
    ("address", "below"),
    [
        ("s3://bucket/a/b.csv", "s3/bucket/a/b.csv"),
        ("s3:/bucket/a", "s3/bucket/a"),
        ("hdfs://name:8020/a", "hdfs/name:8020/a"),
        ("https://u:p@host/a/b.csv", "https/host/-/a/b.csv"),
    ],
)
def test_addresses_are_paths_and_back(address, below, tmp_path, monkeypatch):
    monkeypatch.setenv("ADREC_REMOTE_CACHE", str(tmp_path))
    assert local_of(address) == tmp_path / below
    assert address_of(tmp_path / "elsewhere") is None and address_of("/x") is None
    if not address.startswith("http"):
        plain = address.replace(":/b", "://b")
        assert address_of(local_of(address)) == shown(str(local_of(address))) == plain
    assert shown(f"'{local_of('https://host/a/b.csv?key=1')}', row 3") == "'https://host/a/b.csv', row 3"
    for wrong in ("s3://bucket/../x", "https://host"):
        with pytest.raises(ValueError, match="is no address of the kind"):
            local_of(wrong)


def test_paths_of_configs_may_be_addresses(tmp_path, monkeypatch):
    monkeypatch.setenv("ADREC_REMOTE_CACHE", str(tmp_path))
    config = load_config(None, ScoreConfig, ["bundle=s3://b-b/bundle", "output=gs://b/x.csv", "impressions=az://c/new/*.csv"])
    assert config.bundle == tmp_path / "s3/b-b/bundle" and config.output == tmp_path / "gs/b/x.csv"
    assert config.impressions is not None and config.impressions.files == str(tmp_path / "az/c/new/*.csv")
    (tmp_path / "c.yaml").write_text("output: s3://b/p\nsource: {format: tables, impressions: {files: [s3://b/x.csv, y.csv]}}")
    source = load_config(tmp_path / "c.yaml", PreprocessConfig).source
    assert source.impressions.files == [str(tmp_path / "s3/b/x.csv"), str(tmp_path / "y.csv")]
