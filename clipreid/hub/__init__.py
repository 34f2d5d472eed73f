"""A trained model <-> a run folder <-> a repository on the Hugging Face Hub.

`folder` writes and reads run folders, `download` fetches published ones, `publish` and `card` make them.
"""

from clipreid.hub.checks import read_config
from clipreid.hub.download import find_run
from clipreid.hub.files import run_name, snapshot_of
from clipreid.hub.folder import (
    ADAPTER,
    CONFIG,
    HEADS,
    IDENTITIES,
    TOWER,
    backbone_print,
    backbone_record,
    check_run,
    load,
    load_identities,
    save_identities,
    save_model,
)
from clipreid.hub.untrained import find_model, load_untrained

__all__ = [
    "ADAPTER",
    "CONFIG",
    "HEADS",
    "IDENTITIES",
    "TOWER",
    "backbone_print",
    "backbone_record",
    "check_run",
    "find_model",
    "find_run",
    "load",
    "load_identities",
    "load_untrained",
    "read_config",
    "run_name",
    "save_identities",
    "save_model",
    "snapshot_of",
]
