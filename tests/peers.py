"""Other people's clients, each in an environment of its own under `$CHORUS_HOME/peers`, installed on first use.

They are heavy, and want versions of their own of what Chorus uses: no extra of this distribution could hold them.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

PYTHON = {
    "litellm": (
        "litellm==1.106.2",
        "mcp",
    ),  # it imports mcp for any call with tools, and does not depend on it
    "langchain": ("langchain-openai==1.7.3",),
    "schemathesis": ("schemathesis==4.32.5",),
}
NODE = {"openai-node": ("openai@6.49.0",)}
INSTALL_S = 600.0


def home() -> Path:
    """Where they are kept."""
    return Path(os.environ.get("CHORUS_HOME", Path.home() / ".cache" / "chorus")) / "peers"


def remedy(peer: str) -> str:
    """How to get one."""
    what = " ".join((*PYTHON.get(peer, ()), *NODE.get(peer, ())))
    return f"the first run installs {what} into {home() / peer} with your pip or npm, and needs a registry for it"


def command(peer: str) -> list[str]:
    """What runs a script with `peer` at hand."""
    return ["node"] if peer in NODE else [str(home() / peer / "bin" / "python")]


def available(peer: str) -> bool:
    """Whether `peer` is installed; tries to install it when it is not."""
    folder = home() / peer
    done = folder / ".installed"
    wanted = " ".join((*PYTHON.get(peer, ()), *NODE.get(peer, ())))
    if done.is_file() and done.read_text() == wanted:
        return True
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    if peer in NODE:
        if shutil.which("npm") is None:
            return False
        folder.mkdir()
        steps = [["npm", "install", "--prefix", str(folder), "--no-audit", "--no-fund", *NODE[peer]]]
    else:
        pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", *PYTHON[peer]]
        steps = [[sys.executable, "-m", "venv", str(folder)], pip]
    for step in steps:
        if subprocess.run(step, capture_output=True, timeout=INSTALL_S, check=False).returncode:
            shutil.rmtree(folder, ignore_errors=True)
            return False
    done.write_text(wanted)
    return True
