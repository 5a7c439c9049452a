"""What a message offers as the cure works for the installation that it is read in."""

import json
from types import SimpleNamespace

import pytest

from adrec import errors


@pytest.mark.parametrize(
    ("origin", "command"),
    [
        (None, "pip install 'adrec[serve]'"),
        ({"url": "file:///home/me/adrec", "dir_info": {"editable": True}}, "pip install --editable '/home/me/adrec[serve]'"),
        ({"url": "file:///my%20adrec", "dir_info": {"editable": True}}, "pip install --editable '/my adrec[serve]'"),
        ({"url": "file:///tmp/adrec-1.whl", "archive_info": {}}, "pip install 'adrec[serve] @ file:///tmp/adrec-1.whl'"),
        ({"url": "https://git.example/adrec", "vcs_info": {"vcs": "git"}}, "pip install 'adrec[serve] @ git+https://git.example/adrec'"),
    ],
)  # fmt: skip
def test_an_extra_is_installed_from_where_adrec_came_from(origin, command, monkeypatch):
    text = None if origin is None else json.dumps(origin)
    monkeypatch.setattr(errors, "distribution", lambda name: SimpleNamespace(read_text=lambda file: text))
    assert errors.install_hint("serve") == command


def test_this_installation_has_a_hint():
    assert errors.install_hint("serve").startswith("pip install")
