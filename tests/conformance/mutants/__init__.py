"""Gradient rules that are wrong on purpose, each by a mistake that is easy to make: name -> (operator, rule).

Every module here has a dict `MUTANTS`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import Any

MUTANTS: dict[str, tuple[str, Callable[..., Any]]] = {}
for module in pkgutil.iter_modules(__path__):
    MUTANTS |= importlib.import_module(f"{__name__}.{module.name}").MUTANTS
