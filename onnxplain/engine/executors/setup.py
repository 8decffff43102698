"""How precisely models are run."""

from __future__ import annotations

from enum import StrEnum

from onnxplain.errors import UsageError


class Precision(StrEnum):
    """What numbers a model is computed in."""

    FP32 = "fp32"
    TF32 = "tf32"  # float32 whose products are rounded to 10 bits, on GPUs: a switch of the runtime
    FP16 = "fp16"  # these two are in the graph, see `adapters.gradient.precision`
    BF16 = "bf16"

    @classmethod
    def parse(cls, text: str) -> Precision:
        """Raises `UsageError`."""
        if text not in cls.__members__.values():
            raise UsageError(f"precision {text!r} is unknown; next: use one of {', '.join(cls)}")
        return cls(text)
