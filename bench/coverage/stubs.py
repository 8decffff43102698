"""torchvision beside a CPU build of torch: its compiled operators are absent, and their absence breaks its import."""

from __future__ import annotations

import importlib
import re
import sys
from types import ModuleType

import torch

# With the argument names by which torchvision registers shape functions; of the others it asks for the name only.
SCHEMAS = {
    "nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
MISSING = re.compile(r"operator torchvision::(\w+) does not exist")
LIBRARY = torch.library.Library("torchvision", "FRAGMENT")  # its definitions go when it goes


def import_torchvision() -> ModuleType:
    """Import torchvision; where its operators are missing, declare them. No classifier calls one."""
    for _ in range(30):
        try:
            return importlib.import_module("torchvision")
        except RuntimeError as error:
            missing = MISSING.search(str(error))
            if missing is None:
                raise
            for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
                del sys.modules[name]
            LIBRARY.define(missing[1] + SCHEMAS.get(missing[1], "(Tensor x) -> Tensor"))
    raise ImportError("torchvision misses more operators than it has")
