"""Tell running servers to load the champion anew."""

import json
import os
import urllib.error
import urllib.request
from pathlib import Path

from adrec.config.training.daily import Served
from adrec.errors import ResourceError
from adrec.terminal import Terminal


def reload_servers(config: Served, champion: Path, terminal: Terminal) -> list[str]:
    """The servers that now serve the folder they were started with, read anew. All are asked before the first fault is raised.

    Raises ResourceError naming a server that did not; the promotion stands, and a rerun asks again.
    """
    done, faults = [], []
    for address in config.reload:
        with terminal.progress(f"reloading {address}"):
            fault = _ask(address, config.reload_seconds)
        if fault:
            faults.append(f"{address}: did not load {champion.name} ({fault})")
        else:
            done.append(address)
    if faults:
        raise ResourceError(f"{'; '.join(faults)}. The champion is promoted; run the same command again to reload.")
    return done


def _ask(address: str, seconds: float) -> str:
    """What went wrong; empty where nothing did."""
    headers = {"content-type": "application/json", "x-api-key": os.environ.get("ADREC_API_KEY", "")}
    request = urllib.request.Request(f"{address.rstrip('/')}/admin/reload", b"{}", headers, method="POST")
    try:
        with urllib.request.urlopen(request, timeout=seconds):
            return ""
    except urllib.error.HTTPError as error:
        try:
            detail = json.loads(error.read()).get("detail")
        except (ValueError, AttributeError):
            detail = None
        return f"{error.code}: {detail or error.reason}"
    except (OSError, ValueError) as error:
        return str(getattr(error, "reason", error))
