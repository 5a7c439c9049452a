"""Server and clients in threads, over TLS on loopback: what they learn, what is on the wire, who is let in."""

import datetime
import ipaddress
import json
import threading

import numpy as np
import pyarrow as pa
import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from ports import free_port
from worlds import make_world, word_encoder

from adrec.bundle import open_bundle
from adrec.config.training.federate import FederateConfig
from adrec.data.features import FeatureSet
from adrec.data.prepared import open_prepared
from adrec.data.subset import write_subset
from adrec.errors import AdrecError, ConfigError
from adrec.inference.predictor import Predictor
from adrec.privacy.aggregation import fixed, loose
from adrec.stages.training import federate
from adrec.stages.training.federating import client as clients
from adrec.stages.training.federating import owner
from adrec.terminal import Terminal
from adrec.training.federated.exchange import Boxes, Message
from adrec.training.federated.remote import RemoteSums, Summand

QUIET = Terminal(quiet=True)
SILOS = 3


def certificate(folder):
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "loopback")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    pem = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "key.pem").write_bytes(key.private_bytes(*pem))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder cut into silos by user, a finetune config each, a certificate and keys."""
    folder = tmp_path_factory.mktemp("network")
    make_world(folder / "prepared", users=90, requests=900)
    word_encoder(folder / "encoder")
    whole = open_prepared(folder / "prepared")
    for silo in range(SILOS):
        masks = {
            split: np.concatenate([batch["user_index"].to_numpy() for batch in whole.iter(split, ["user_index"])]) % SILOS
            == silo
            for split in ("train", "valid")
        }
        write_subset(whole, folder / f"silo{silo}", masks)
    for name in ("prepared", *(f"silo{silo}" for silo in range(SILOS))):
        settings = {
            "prepared": str(folder / name),
            "output": str(folder / "central"),
            "text": {"reference": str(folder / "encoder"), "cache": str(folder / "cache")},
            "model": {"width": 8, "hidden": [8]},
            "training": {"epochs": 6, "batch_rows": 128, "learning_rate": 5e-3, "loggers": []},
            "baselines": {"names": []},
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(settings))
    certificate(folder)
    keys = [{"name": f"silo{silo}", "key": f"secret-{silo}", "scope": "write"} for silo in range(SILOS)]
    (folder / "keys.yaml").write_text(yaml.safe_dump(keys))
    return folder


def run_all(folder, monkeypatch, *, rounds=4, silent=(), features="agreed", **of_server):
    """The server's result; the clients' by number; and all vectors that they hid."""
    port, hidden, results = free_port(), [], {}
    vector = owner.Owner.vector

    def watched(self, task):
        made = vector(self, task)
        hidden.append(made)
        if task.facts.get("round") == 1 and self.side.prepared.path.name in silent:
            raise SystemExit  # dies in the middle of a round
        return made

    monkeypatch.setattr(owner.Owner, "vector", watched)
    usual = {"rounds": rounds, "clients_per_round": SILOS, "features": features}
    listening = {"port": port, "certificate": folder / "cert.pem", "key": folder / "key.pem", "clients": folder / "keys.yaml",
                 "wait_seconds": 60, "patience_seconds": 5 if silent else 60}  # fmt: skip
    server = FederateConfig(
        finetune=folder / "prepared.yaml",
        output=folder / "server",
        role="server",
        listening=listening,
        threshold=0.6,
        **usual,
        **of_server,
    )
    joining = {"server": f"https://127.0.0.1:{port}", "authority": folder / "cert.pem", "patience_seconds": 30}

    def join(silo):
        config = FederateConfig(
            finetune=folder / f"silo{silo}.yaml", output=folder / f"of-silo{silo}", role="client", joining=joining, **usual
        )
        results[silo] = federate.run(config, QUIET)

    keys = iter(range(SILOS))
    monkeypatch.setattr(clients, "_key", lambda: f"secret-{next(keys)}")
    threads = [threading.Thread(target=join, args=(silo,), daemon=True) for silo in range(SILOS)]
    for thread in threads:
        thread.start()
    made = federate.run(server, QUIET)
    for thread in threads:
        thread.join(30)
    return made, results, hidden


def test_they_learn_together_and_only_masked_sums_are_on_the_wire(world, monkeypatch):
    raw = []
    taken = Boxes.answer
    monkeypatch.setattr(Boxes, "answer", lambda self, name, step, body: raw.append(body) or taken(self, name, step, body))
    made, results, hidden = run_all(world, monkeypatch)
    assert made.clients == SILOS and made.fallen == 0 and made.figures["auc"] > 0.6 and len(results) == SILOS
    answers = [Message.from_bytes(body) for body in raw]
    masked = [said.arrays["masked"] for said in answers if "masked" in said.arrays]
    assert len(masked) == len(hidden) == SILOS * (4 + 2)
    for words in masked:  # each looks like noise: no hidden vector is near it, and its high bits are even
        assert all(len(own) != len(words) or np.mean(fixed(own) == words) < 0.01 for own in hidden)
        assert abs(np.mean(words >> np.uint64(63)) - 0.5) < 5 * 0.5 / np.sqrt(len(words))
    plain = [fixed(own)[:8].tobytes() for own in hidden] + [own[:8].tobytes() for own in hidden]
    plain += [own[:8].astype(np.float32).tobytes() for own in hidden if np.abs(own[:8]).max() > 0]
    assert not any(part in body for part in plain if any(part) for body in raw)
    names = {name for said in answers for name in said.arrays if not name.isdecimal()}
    assert names <= {"channel", "mask", "masked"} and all(set(said.facts) <= {"agreed"} for said in answers)
    # Every side holds the same model.
    prepared = open_prepared(world / "prepared")
    rows = next(prepared.iter("valid", list(prepared.columns)))
    rows = pa.Table.from_batches([rows])
    scores = [
        Predictor.load(world / name, device="cpu").score(rows, prepared.ads(), prepared.users())["score"].to_numpy()
        for name in ("server", "of-silo0", "of-silo2")
    ]
    assert scores[0] == pytest.approx(scores[1], abs=1e-6) and scores[0] == pytest.approx(scores[2], abs=1e-6)
    assert open_bundle(world / "server").manifest["federated"]["clients"] == SILOS


def test_sides_that_agree_on_no_features_fit_them_by_masked_sums(world, monkeypatch):
    whole = open_prepared(world / "prepared")
    central, own = whole.features(), {}
    for silo in range(SILOS):  # each has preprocessed by itself
        folder = world / f"silo{silo}"
        mine = open_prepared(folder)
        rows = pa.Table.from_batches(list(mine.iter("train", list(mine.columns))))
        fitted = {**central, "impressions": FeatureSet.fit(central["impressions"].spec, [rows])}
        own[silo] = fitted["impressions"].numerics[0].mean
        file = folder / "features.json"
        before = file.read_text()
        file.unlink()  # which was a link
        file.write_text(json.dumps({name: features.to_json() for name, features in fitted.items()}))
        assert file.read_text() != before
    assert len(set(own.values())) == SILOS
    raw, taken = [], Boxes.answer
    monkeypatch.setattr(Boxes, "answer", lambda self, name, step, body: raw.append(body) or taken(self, name, step, body))
    try:
        made, results, hidden = run_all(world, monkeypatch, rounds=1, features="federated")
    finally:
        for silo in range(SILOS):
            (world / f"silo{silo}" / "features.json").write_text((world / "prepared" / "features.json").read_text())
    assert made.clients == len(results) == SILOS and len(hidden) == SILOS * (2 + 1 + 2)
    sides = [open_bundle(world / name).json("features.json") for name in ("server", *(f"of-silo{n}" for n in range(SILOS)))]
    assert all(side == sides[0] for side in sides)
    appeal, alone = FeatureSet.from_json(sides[0]["impressions"]).numerics[0], central["impressions"].numerics[0]
    assert (appeal.mean, appeal.scale) == pytest.approx((alone.mean, alone.scale), rel=1e-9)
    assert sides[0]["impressions"]["categorical"][0]["kind"] == "hashed"
    answers = [Message.from_bytes(body) for body in raw]
    assert {name for said in answers for name in said.arrays if not name.isdecimal()} == {"channel", "mask", "masked"}
    plain = [fixed(vector[vector != 0][:8]).tobytes() for vector in hidden]
    assert not any(part in body for part in plain if part for body in raw)


def test_noise_of_the_server_is_counted_in_every_copy_as_in_a_simulation(world, monkeypatch):
    privacy = {"epsilon": 40.0, "delta": 1e-4, "public": ["features", "encoder"]}
    made, results, hidden = run_all(world, monkeypatch, rounds=2, privacy=privacy, clip=0.25)
    assert sorted(results) == [0, 1, 2] and len(hidden) == SILOS * (1 + 2 + 3)
    assert max(np.linalg.norm(own) for own in hidden if len(own) > 100) <= 0.25 + 1e-6  # the clients' own clip is 1
    simulated = FederateConfig(
        finetune=world / "prepared.yaml", output=world / "simulated", clients="category", rounds=2, clients_per_round=SILOS,
        clip=0.25, privacy=privacy,
    )  # fmt: skip
    ledger = federate.run(simulated, QUIET).privacy
    assert ledger["unit"] == "client" and 0 < ledger["spent"] <= 40
    whole = open_bundle(world / "server")
    for result, name in [(made, "server"), *((results[silo], f"of-silo{silo}") for silo in range(SILOS))]:
        copy = open_bundle(world / name)  # refuses a file without a line
        assert result.privacy == ledger == copy.manifest["privacy"]
        assert copy.manifest["files"].keys() == whole.manifest["files"].keys()
        held = {file: copy.file(file).read_bytes() for file in copy.manifest["files"] if "README" not in file}
        different = {file for file, content in held.items() if content != whole.file(file).read_bytes()}
        assert different <= {"config.yaml"}, different  # which names the side's own folder


@pytest.mark.slow
def test_a_client_that_dies_in_a_round_is_gone_without(world, monkeypatch):
    made, results, _ = run_all(world, monkeypatch, silent=("silo1",))
    assert made.fallen >= 1 and made.clients == SILOS and sorted(results) == [0, 2]
    assert np.isfinite(made.figures["auc"])


@pytest.mark.parametrize("dying", [None, "shares", "masked", "revealed"])
def test_sums_are_exact_with_a_fifth_of_the_clients_gone(dying):
    names = [f"c{number}" for number in range(10)]
    boxes, random = Boxes(names), np.random.default_rng(0)
    vectors = {name: random.normal(0, 100, 50) for name in names}
    stop = threading.Event()

    def client(name):
        summand, after = Summand(lambda task: vectors[name]), 0
        while not stop.is_set():
            asked = boxes.question(name, after, 0.2)
            if asked is None:
                continue
            after, question = asked[0], Message.from_bytes(asked[1])
            if question.facts["phase"] == dying and name in {"c3", "c7"}:
                return
            boxes.answer(name, after, summand.answer(question).to_bytes())

    threads = [threading.Thread(target=client, args=(name,), daemon=True) for name in names]
    for thread in threads:
        thread.start()
    total, answered = RemoteSums(boxes, 0.6, 1.0)(names, Message({"task": "x"}, {}))
    stop.set()
    there = [name for name in names if dying in {None, "revealed"} or name not in {"c3", "c7"}]
    assert answered == there
    assert np.array_equal(total, loose(np.sum([fixed(vectors[name]) for name in there], axis=0, dtype=np.uint64)))


def test_a_client_unmasks_nobody_for_a_curious_server():
    summand = Summand(lambda task: np.ones(3))
    first = summand.answer(Message({"phase": "keys", "number": 0, "threshold": 3}, {}))
    own = {"channel0": first.arrays["channel"], "mask0": first.arrays["mask"]}
    with pytest.raises(AdrecError, match="too few clients for a sum that hides any"):
        summand.answer(Message({"phase": "shares", "threshold": 3}, own))
    with pytest.raises(AdrecError, match="left too few clients in a sum"):
        summand.answer(Message({"phase": "masked"}, {}))
    with pytest.raises(AdrecError, match="mask of too few clients"):
        summand.answer(Message({"phase": "revealed", "answered": [0]}, {}))
    with pytest.raises(AdrecError, match="a sum that was not begun"):
        summand.answer(Message({"phase": "revealed", "answered": [0, 1, 2]}, {}))


def test_strangers_are_not_let_in(world, monkeypatch):
    from starlette.testclient import TestClient

    from adrec.config.inference.access import Access
    from adrec.serve.door.keys import Keys
    from adrec.stages.training.federating.server import _app

    keys = Keys(Access(keys=world / "keys.yaml"), environment={})
    boxes = Boxes(keys.names)
    asked = TestClient(_app(boxes, keys))
    assert asked.get("/work").status_code == 401
    assert asked.post("/answers/1", headers={"authorization": "Bearer wrong"}).status_code == 401
    late = asked.post("/answers/1", headers={"authorization": "Bearer secret-1"}, content=b"x")
    assert late.status_code == 409  # nothing was asked
    monkeypatch.delenv("ADREC_API_KEY", raising=False)
    config = FederateConfig(finetune=world / "silo0.yaml", output=world / "x", role="client")
    with pytest.raises(ConfigError, match="holds no key"):
        federate.run(config, QUIET)
    monkeypatch.setenv("ADREC_API_KEY", "k")
    config = FederateConfig(
        finetune=world / "silo0.yaml", output=world / "x", role="client", joining={"server": "http://example.com"}
    )
    with pytest.raises(ConfigError, match="without TLS"):
        federate.run(config, QUIET)
    with pytest.raises(AdrecError, match="cannot be read"):
        Message.from_bytes(b"no such message")
