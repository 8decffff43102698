"""`compare`: the same questions to both sides, and how far their answers agree."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from importlib.metadata import version
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from onnxplain.adapters.agreement import cosine_of, length_of
from onnxplain.comparison.agreement import rank_correlation, relative, top_overlap
from onnxplain.comparison.recorded import Record, recorded
from onnxplain.comparison.results import (
    Comparison,
    Gradients,
    ImageAgreement,
    ImageGradients,
    MethodAgreement,
    Thresholds,
)
from onnxplain.comparison.sides import CaptumSide, RuntimeSide, Side, TorchSide, matched
from onnxplain.comparison.spent import Spent, spent
from onnxplain.engine.drive import in_order
from onnxplain.engine.explanation import Explanation
from onnxplain.engine.methods import AGI, BIG, ISA, CrediblePath, GuidedIG, Method
from onnxplain.engine.metrics import InsertionDeletion
from onnxplain.engine.metrics.insertion_deletion import Played
from onnxplain.engine.metrics.maps import score_maps
from onnxplain.engine.requests import Array, Kind
from onnxplain.errors import UsageError
from onnxplain.explainer import Explainer, open

# They choose by a gradient's sign or, guided IG, by its rank: what rounding turns there, the rest of the way keeps.
SIGN_STEPS = (ISA, AGI, BIG, CrediblePath, GuidedIG)
RECORDED = 4  # images whose points are recorded

Drawn = Callable[[str, MethodAgreement, Sequence[Explanation], Array], None]


def compare(
    model: str | os.PathLike[str],
    reference: Any,
    photos: Sequence[str | os.PathLike[str]],
    methods: Sequence[Method],
    *,
    against: str | None = None,
    against_precision: str | None = None,
    captum: bool = False,
    float64: bool = True,
    protocol: str = "rise",
    step: int | None = None,
    thresholds: Thresholds | None = None,
    say: Callable[[str], None] = lambda what: None,  # noqa: ARG005 (nobody listens)
    finished: Callable[[MethodAgreement, Sequence[Explanation], Array], None] = lambda one, ours, theirs: None,  # noqa: ARG005
    **opening: Any,
) -> Comparison:
    """Explain photos with this engine and with others, and compare everything that both say.

    Args:
        model: a classifier or a gradient model, as in `open`.
        reference: the same classifier as a PyTorch module in evaluation mode, which takes what the classifier takes;
            None: there is none.
        photos: image files.
        methods: what to compare. Where a method draws points at random, both sides take what its loop takes: credible
            path the middles of equal parts (`alphas`).
        against: another runtime to compare with, as `on` of `open`, and its precision.
        captum: compare with Captum too, for the methods that it has.
        float64: run the loops of sign-step methods in float64 too, to tell what float32 alone does to them.
        protocol: of insertion and deletion, and its step in pixels.
        thresholds: what both sides have to agree by.
        say: told what is being done.
        finished: given each method's agreement with a side as it is known, our explanations and their attributions.
        opening: how the model is opened, as in `open`.

    Raises:
        UsageError: there is nobody to compare with, or a method that the reference does not have.
        Otherwise as `open`, and as reading photos.
    """
    if reference is None and against is None:
        raise UsageError("nobody to compare with; next: give a reference, or another runtime with against")
    if not photos:
        raise UsageError("compare: expected at least one photo, got none")
    with ExitStack() as stack:
        explainer = stack.enter_context(open(model, **opening))
        sides: list[Side] = []
        if reference is not None:
            sides.append(TorchSide(reference, explainer))
        if captum and reference is not None:
            sides.append(CaptumSide(reference, explainer))
        if against is not None:
            elsewhere = opening | {"on": against, "precision": against_precision or opening.get("precision")}
            sides.append(RuntimeSide(stack.enter_context(open(model, **elsewhere))))
        exact = TorchSide(reference, explainer, "float64") if float64 and reference is not None else None
        methods = [matched(method) for method in methods]
        for side in sides:
            side.require(methods)
        pixels = [explainer.read(photo) for photo in photos]
        work = Work(
            explainer=explainer,
            images=[str(photo) for photo in photos],
            x=np.stack(list(map(explainer.to_input, pixels))),
            thresholds=thresholds or Thresholds(),
            metric=InsertionDeletion(protocol, step=step),
            exact=exact,
        )
        found = Comparison(
            model=str(model),
            on=str(explainer.setup.place),
            precision=str(explainer.setup.precision),
            batch_size=explainer.batch_size,
            threads=explainer.setup.threads,
            protocol=str(work.metric.protocol),
            thresholds=work.thresholds,
            versions=explainer.provenance["versions"] | (versions() if reference is not None else {}),
        )
        for side in sides:
            say(f"logits and gradients: {side.name}")
            work.warm(side)
            found.gradients.append(work.gradients(side))
        for method in methods:
            say(f"{method.id}: this engine")
            with spent() as ours:
                explained = explainer.explain(work.x, method)
            explained = [replace(one, image=image) for one, image in zip(explained, pixels, strict=True)]
            played = work.scored([one.attribution for one in explained])
            for side in (side for side in sides if side.has(method)):
                say(f"{method.id}: {side.name}")
                with spent() as theirs:
                    attributions = side.explain(work.x, method, explained)
                agreement, images = work.judged(method, side, explained, attributions, played, (ours, theirs))
                found.methods.append(agreement)
                found.images.extend(images)
                finished(agreement, explained, attributions)
    return found


class AtPoints(NamedTuple):
    """Recorded points: the cosines of both sides' gradients, and how many were passed over."""

    cosines: list[float]
    saturated: int


def versions() -> dict[str, str]:
    return {"torch": version("torch")}


@dataclass(frozen=True, kw_only=True)
class Work:
    """The engine, and the images `x` (N, C, H, W) that both sides are asked about."""

    explainer: Explainer
    images: Sequence[str]
    x: Array
    thresholds: Thresholds
    metric: InsertionDeletion
    exact: TorchSide | None

    def warm(self, side: Side) -> None:
        """One full batch on both sides, which no clock counts."""
        batch = self.explainer.batch_size
        rows = np.resize(self.x, (batch, *self.x.shape[1:]))
        for one in (self.explainer, side):
            one.gradients(rows, np.zeros(batch, int), Kind.LOGIT)

    def gradients(self, side: Side) -> Gradients:
        """How logits, and the gradients of the predicted classes, agree."""
        logits = self.explainer.logits(self.x)
        classes = logits.argmax(1)
        ours, theirs = self.explainer.gradients(self.x, classes).gradient, side.gradients(self.x, classes, Kind.LOGIT)
        their_logits = side.logits(self.x)
        off = relative(logits, their_logits)
        cosines = list(map(cosine_of, ours, theirs))
        length = max(map(length_of, ours, theirs), key=lambda ratio: abs(ratio - 1))
        limits = self.thresholds
        return Gradients(
            side=side.name,
            logits=off,
            gradient=relative(ours, theirs),
            cosine=median(cosines),
            cosine_least=min(cosines),
            length=length,
            passed=off <= limits.logits and limits.met(cosines) and abs(length - 1) <= limits.length,
            images=[
                ImageGradients(image=name, logits=relative(z, their_z), gradient=relative(g, their_g), cosine=cosine)
                for name, z, their_z, g, their_g, cosine in zip(
                    self.images, logits, their_logits, ours, theirs, cosines, strict=True
                )
            ],
        )

    def scored(self, attributions: Sequence[Array]) -> list[Played]:
        """Insertion and deletion of maps of all images, by this engine's classifier."""
        explainer = self.explainer
        how: dict[str, Any] = {"head": explainer.head, "channel_axis": explainer.channel_axis}
        return score_maps(self.metric, explainer.forward, self.x, attributions, space=explainer.space, **how)

    def judged(
        self, method: Method, side: Side, explained: Sequence[Explanation], theirs: Array, played: Sequence[Played],
        took: tuple[Spent, Spent],
    ) -> tuple[MethodAgreement, list[ImageAgreement]]:  # fmt: skip
        """One method on both sides: image by image, and all of them, with a verdict."""
        images = [
            ImageAgreement(
                image=name,
                method=method.id,
                side=side.name,
                cosine=cosine_of(one.attribution, their),
                spearman=rank_correlation(one.attribution, their),
                top=top_overlap(one.attribution, their),
                insertion=game.insertion.auc,
                insertion_theirs=other.insertion.auc,
                deletion=game.deletion.auc,
                deletion_theirs=other.deletion.auc,
            )
            for name, one, their, game, other in zip(
                self.images, explained, theirs, played, self.scored(list(theirs)), strict=True
            )
        ]
        signs = isinstance(method, SIGN_STEPS)
        record = self.at_points(method, side, explained) if signs else None
        alone, alone_insertion = self.in_float64(method, side, explained, theirs) if signs else (None, None)
        verdict: bool | None
        insertion, insertion_theirs = mean(images, "insertion"), mean(images, "insertion_theirs")
        spearman = min(one.spearman for one in images)
        if record is not None:
            verdict, why = self.by_signs(record, insertion - insertion_theirs)
            if alone is not None and alone_insertion is not None:
                why.append(
                    f"ranks are not judged: PyTorch in float32 and in float64 agree at Spearman {alone:.3f}, and "
                    f"differ by {insertion_theirs - alone_insertion:+.4f} in the mean insertion AUC"
                )
        else:
            verdict = spearman >= self.thresholds.spearman
            why = [
                f"the least Spearman correlation of an image is {spearman:.6f}, expected {self.thresholds.spearman:g} "
                "or more, since the method is continuous in the gradient"
            ]
        ours, other = took
        return MethodAgreement(
            method=method.id,
            side=side.name,
            verdict=verdict,
            why=why,
            cosine=min(one.cosine for one in images),
            spearman=spearman,
            spearman_mean=mean(images, "spearman"),
            top=mean(images, "top"),
            insertion=insertion,
            insertion_theirs=insertion_theirs,
            deletion=mean(images, "deletion"),
            deletion_theirs=mean(images, "deletion_theirs"),
            points=None if record is None else len(record.cosines),
            points_saturated=None if record is None else record.saturated,
            points_cosine=median(record.cosines) if record is not None and record.cosines else None,
            points_cosine_least=min(record.cosines, default=None) if record is not None else None,
            spearman_float64=alone,
            insertion_float64=alone_insertion,
            seconds=ours.seconds,
            seconds_theirs=other.seconds,
            memory=ours.memory,
            memory_theirs=other.memory,
        ), images

    def by_signs(self, at: AtPoints, difference: float) -> tuple[bool | None, list[str]]:
        """The verdict on a method that steps by the sign or the rank of the gradient, and what it stands on.

        None: neither a point nor the mean could be judged.
        """
        limits = self.thresholds
        good = limits.met(at.cosines) if at.cosines else None
        why = []
        if at.cosines:
            why.append(
                f"at {len(at.cosines)} points where the engine asked for gradients, their cosines with the other "
                f"side's are {median(at.cosines):.7f} in the median, expected {limits.cosine:g} or more, and at least "
                f"{min(at.cosines):.5f}, expected {limits.cosine_least:g} or more"
            )
        if at.saturated:
            why.append(f"{at.saturated} points more are saturated, which leaves float32 no gradient to compare")
        if len(self.images) >= limits.images:
            good = good is not False and abs(difference) <= limits.auc
            why.append(
                f"the mean insertion AUC over {len(self.images)} images differs by {difference:+.4f}, expected at most "
                f"{limits.auc:g}"
            )
        else:
            why.append(
                f"the mean insertion AUC differs by {difference:+.4f}, which is not judged: {len(self.images)} images "
                f"are fewer than {limits.images}"
            )
        return good, why

    def at_points(self, method: Method, side: Side, explained: Sequence[Explanation]) -> AtPoints:
        """How gradients agree where the engine asks for them."""
        records = [Record() for _ in explained[:RECORDED]]
        programs = (
            recorded(self.explainer.program(x, method, one.target), record)
            for x, one, record in zip(self.x, explained, records, strict=False)
        )
        for _ in in_order(programs, self.explainer.model):
            pass
        cosines = [cosine for record in records for cosine in cosines_at(record, side)]
        return AtPoints(cosines, sum(record.saturated for record in records))

    def in_float64(
        self, method: Method, side: Side, explained: Sequence[Explanation], theirs: Array
    ) -> tuple[float, float] | tuple[None, None]:
        """The mean Spearman correlation of the loop in float32 with itself in float64, and the insertion AUC there."""
        if self.exact is None or not isinstance(side, TorchSide):
            return None, None
        exact = self.exact.explain(self.x, method, explained)
        games = self.scored(list(exact.astype(np.float32)))
        correlations = list(map(rank_correlation, theirs, exact))
        return float(np.mean(correlations)), float(np.mean([game.insertion.auc for game in games]))


def cosines_at(record: Record, side: Side) -> list[float]:
    """The cosines of the gradients of a record with those of another side, asked for in one call for each objective."""
    found = []
    for kind in {kind for _, _, kind, _ in record.points}:
        points = [(x, target, gradient) for x, target, k, gradient in record.points if k is kind]
        theirs = side.gradients(np.stack([x for x, _, _ in points]), np.array([t for _, t, _ in points]), kind)
        found += [cosine_of(ours, their) for (_, _, ours), their in zip(points, theirs, strict=True)]
    return found


def mean(images: Sequence[ImageAgreement], what: str) -> float:
    return float(np.mean([getattr(one, what) for one in images]))
