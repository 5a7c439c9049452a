"""Bundles as an attacker would make them: one thing of a good one is changed, then digests and signature are made to fit."""

import hashlib
import json
import os
import shutil
import struct

import yaml

from adrec.bundle import MANIFEST
from adrec.data.disk.signatures import sign

NUMBERS = [0, -1, 1, 2, 7, 10**6, 2**31, 2**40, 2**63, -(2**63), 10**30, 0.5, -0.0, 1e308, -1e308, float("nan"), float("inf")]


class Mutations:
    """`bait` is a folder that nobody may look into; strings of mutated bundles point there."""

    def __init__(self, bundle, bait, key, rng):
        self.bundle, self.bait, self.key, self.rng = bundle, bait, key, rng
        self.deeds = [self.flip, self.cut, self.json, self.json, self.json, self.yaml, self.trees, self.trees, self.header,
                      self.swap, self.listed, self.link, self.empty, self.doubled]  # fmt: skip

    def make(self, target):
        """A mutated copy at `target`; returns what was done to it."""
        shutil.copytree(self.bundle, target, ignore=shutil.ignore_patterns(MANIFEST + "*"))
        facts = {name: value for name, value in json.loads((self.bundle / MANIFEST).read_text()).items() if name != "files"}
        self.folder, self.more = target, {}
        deed = self.rng.choice(self.deeds)
        done = deed()
        files = {
            file.relative_to(target).as_posix(): {
                "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
                "bytes": file.stat().st_size,
            }
            for file in sorted(target.rglob("*"))
            if file.is_file()
        }
        (target / MANIFEST).write_text(json.dumps({**facts, "files": {**files, **self.more}}))
        sign(target / MANIFEST, self.key)
        return f"{deed.__name__} {done}"

    def any(self, *endings):
        return self.rng.choice([file for file in sorted(self.folder.rglob("*")) if file.is_file() and file.suffix in endings])

    def path(self):
        up = os.path.relpath(self.bait, self.folder)
        return self.rng.choice([str(self.bait / "secret"), f"{up}/secret", f"{up}/made", f"file://{self.bait}/secret", up])

    def value(self):
        rng = self.rng
        kinds = [
            lambda: rng.choice(NUMBERS), self.path, lambda: None, lambda: True, list, dict, str, lambda: "x" * 10**5,
            lambda: [[1]], lambda: {"a": {"b": 1}}, lambda: "\x00\x1b[31m", lambda: [rng.choice(NUMBERS) for _ in range(5)],
            lambda: "!!python/object/apply:os.system ['true']",
        ]  # fmt: skip
        return rng.choice(kinds)()

    def flip(self):
        file = self.any(".json", ".yaml", ".safetensors", ".parquet", ".npz", ".npy", ".txt", ".model")
        content = bytearray(file.read_bytes())
        for _ in range(self.rng.choice((1, 3, 50))):
            if content:
                content[self.rng.randrange(len(content))] = self.rng.randrange(256)
        file.write_bytes(bytes(content))
        return file.name

    def cut(self):
        file = self.any(".json", ".yaml", ".safetensors", ".parquet", ".npz", ".npy", ".txt", ".model")
        file.write_bytes(file.read_bytes()[: self.rng.randrange(file.stat().st_size + 1)])
        return file.name

    def changed(self, value):
        """A value with one thing in it changed."""
        places = []

        def walk(held, at):
            for key in held if isinstance(held, dict) else range(len(held)) if isinstance(held, list) else ():
                places.append((held, key))
                if len(places) < 20_000:
                    walk(held[key], at)

        walk(value, ())
        if not places:
            return self.value()
        held, key = self.rng.choice(places)
        if self.rng.random() < 0.15:
            del held[key]
        elif self.rng.random() < 0.15 and isinstance(held, dict):
            held[self.rng.choice(["auto_map", "_name_or_path", "tokenizer_file", "cache", "teacher", self.path()])] = (
                self.value()
            )
        else:
            held[key] = self.value()
        return value

    def json(self):
        file = self.any(".json")
        value = json.loads(file.read_text())
        for _ in range(self.rng.choice((1, 1, 3))):
            value = self.changed(value)
        file.write_text(json.dumps(value))
        return file.name

    def yaml(self):
        file = self.any(".yaml")
        text = yaml.safe_dump(self.changed(yaml.safe_load(file.read_text())), allow_unicode=True)
        file.write_text(text.replace("'!!python", "!!python").replace("true'']'", "true']"))
        return file.name

    def trees(self):
        """Numbers and lines of LightGBM's text, which its parser believes."""
        file = self.rng.choice(sorted(self.folder.rglob("trees*.txt")) or [self.any(".json")])
        lines = file.read_text().split("\n")
        for _ in range(self.rng.choice((1, 1, 5))):
            at = self.rng.randrange(len(lines))
            name, equals, cells = lines[at].partition("=")
            words = cells.split(" ")
            if self.rng.random() < 0.7 and equals:
                words[self.rng.randrange(len(words))] = str(self.rng.choice([*NUMBERS, "x", "-5", "999999", "", "1 2"]))
                lines[at] = f"{name}={' '.join(words)}"
            elif self.rng.random() < 0.5:
                del lines[at]
            else:
                lines.insert(at, self.rng.choice(lines))
        file.write_text("\n".join(lines))
        return file.name

    def header(self):
        """Shapes, types and places that a safetensors file claims."""
        file = self.any(".safetensors")
        content = file.read_bytes()
        (size,) = struct.unpack("<Q", content[:8])
        header = json.dumps(self.changed(json.loads(content[8 : 8 + size]))).encode()
        claimed = self.rng.choice((len(header), len(header), size, 2**40, 2**63))
        file.write_bytes(struct.pack("<Q", claimed) + header + content[8 + size :])
        return file.name

    def swap(self):
        one, other = self.any(".json", ".safetensors", ".parquet", ".txt"), self.any(".json", ".safetensors", ".parquet")
        shutil.copyfile(other, self.folder / "held.json")
        shutil.copyfile(one, other)
        shutil.move(self.folder / "held.json", one)
        return f"{one.name} {other.name}"

    def listed(self):
        name = self.rng.choice([self.path(), "../x.json", "/etc/passwd", "a\x00.json", "encoder/x.py", "x.pkl", "", "."])
        self.more = {name: self.rng.choice([{"sha256": "0" * 64, "bytes": 0}, {"sha256": None, "bytes": -1}, None, []])}
        return name

    def link(self):
        file = self.any(".json", ".safetensors", ".parquet", ".txt")
        file.unlink()
        file.symlink_to(self.bait / "secret")
        return file.name

    def empty(self):
        file = self.any(".json", ".yaml", ".safetensors", ".parquet", ".npz", ".txt")
        if self.rng.random() < 0.5:
            file.unlink()
        else:
            file.write_bytes(self.rng.choice((b"", b"{}", b"[]", b"null", b"\xff" * 40, b"[" * 5_000, b"0" * 10**6)))
        return file.name

    def doubled(self):
        file = self.any(".json", ".yaml", ".txt", ".parquet", ".safetensors")
        file.write_bytes(file.read_bytes() * 2)
        return file.name
