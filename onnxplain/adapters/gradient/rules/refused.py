"""Operators that get no rule on principle, and what to do instead. What is not listed merely has no rule so far."""

from __future__ import annotations

from onnxplain.adapters.gradient.registry import refuse

refuse(
    "where it reads is known at run time only, and no operator that every runtime has adds a cotangent to such places; "
    "next: explain an output in front of it, or replace it by operators with fixed places",
    *("DeformConv", "GridSample", "MaxRoiPool", "MaxUnpool", "RoiAlign", "TensorScatter", "Unique"),
)
refuse(
    "spectra have no rule that every runtime can run; next: compute the spectrum in front of the model, and explain "
    "the model behind it",
    *("DFT", "STFT"),
)
refuse(
    "it draws random numbers, so that no two runs explain the same model; next: export the model in evaluation mode",
    *("Bernoulli", "Multinomial"),
)
refuse(
    "it trains a model; next: export the model that was trained, without the step that trains it",
    *(f"ai.onnx.preview.training.{op_type}" for op_type in ("Adagrad", "Adam", "Gradient", "Momentum")),
)
refuse(
    "it works on sequences, optional values or text, and only tensors have gradients; next: export the part of the "
    "model that works on tensors",
    *("ConcatFromSequence", "Optional", "OptionalGetElement", "SequenceAt", "SequenceConstruct", "SequenceErase"),
    *("SequenceInsert", "SequenceMap", "SplitToSequence", "StringConcat", "StringNormalizer", "StringSplit"),
    *("TfIdfVectorizer", "ai.onnx.ml.CastMap", "ai.onnx.ml.DictVectorizer"),
)
