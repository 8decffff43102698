"""One line for every operator with a gradient rule and every attribute that changes its formula.

One module for each of `onnxplain/adapters/gradient/rules`, with its list `SAMPLES`. Inputs are drawn away from kinks
and poles. `Const` makes an input an initializer; integers and masks always are.
"""

from __future__ import annotations

import importlib
import pkgutil

from conformance.samples.sample import Sample

MODULES = sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name != "sample")
SAMPLES: list[Sample] = [sample for name in MODULES for sample in importlib.import_module(f"{__name__}.{name}").SAMPLES]


def of_op(*ops: str) -> list[Sample]:
    """The samples of some operators."""
    return [sample for sample in SAMPLES if sample.op in ops]
