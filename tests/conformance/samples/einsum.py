"""Einsum: one equation for each way that letters may stand."""

from __future__ import annotations

from typing import Any

from conformance.samples.sample import Sample, node, normal, other, weights


def einsum(equation: str, *xs: Any, **more: Any) -> Sample:
    return node("Einsum", *xs, equation=equation, label=equation, **more)


SAMPLES = [
    einsum("ij,jk->ik", normal(2, 3), other(3, 4)),
    einsum("bij,bjk->bik", normal(2, 3, 4), other(2, 4, 5), free=(0, 1)),
    einsum("bhid,bhjd->bhij", normal(2, 3, 4, 5), other(2, 3, 6, 5), free=(0, 1)),
    einsum("bhij,bhjd->bihd", normal(2, 3, 4, 5), other(2, 3, 5, 6), free=(0, 1)),
    einsum("bihd,bjhd->bhij", normal(2, 4, 3, 5), other(2, 6, 3, 5), free=(0, 1)),
    einsum("nchw,kc->nkhw", normal(2, 3, 4, 5), weights(3, 3)),
    einsum("nhwc,hkc->nhwk", normal(2, 3, 4, 5), weights(3, 2, 5)),
    einsum("bhwc,hkc->bhwk", normal(2, 3, 4, 5), other(3, 2, 5)),
    einsum("bijk,jkl->bil", normal(2, 3, 4, 2), other(4, 2, 5)),
    einsum("nctkv,kvw->nctw", normal(2, 3, 4, 2, 3), weights(2, 3, 3)),
    einsum("i,j->ij", normal(3), other(4), free=()),
    einsum("bi,bj->bij", normal(2, 3), other(2, 4), free=(0, 1)),
    einsum("bi,bi->b", normal(2, 3), other(2, 3), free=(0, 1)),
    einsum("bi,bi->", normal(2, 3), other(2, 3), free=(0, 1)),
    einsum("bij->bj", normal(2, 3, 4)),
    einsum("bij->jb", normal(2, 3, 4)),
    einsum("bij,bk->b", normal(2, 3, 4), other(2, 5), free=(0, 1)),
    einsum("bij,jk,kl->bil", normal(2, 3, 4), other(4, 3), normal(3, 5)),
    einsum("bi,ij,bj->b", normal(2, 3), other(3, 4), normal(2, 4), free=(0, 2)),
    einsum("...ij,...jk->...ik", normal(2, 3, 4), other(2, 4, 5), free=(0, 1)),
    einsum("...ij,jk->...ik", normal(2, 5, 3, 4), other(4, 3)),
    einsum("...i,...i", normal(2, 3, 4), other(1, 3, 4)),
    einsum("...i,...j->...ij", normal(1, 3, 4), other(2, 3, 5), free=()),
    einsum("ba,cb", normal(3, 4), other(2, 3), free=()),
    einsum("bii->b", normal(2, 3, 3)),
    einsum("bii->bi", normal(2, 3, 3)),
    einsum("bii,i->bi", normal(2, 3, 3), other(3)),
    einsum("bij,ii->bij", normal(2, 4, 3), other(4, 4)),
    einsum("biii,bi->b", normal(2, 2, 2, 2), other(2, 2), free=(0, 1)),
    einsum("bij,bij->bj", normal(2, 1, 3), other(2, 4, 3), free=()),
    einsum("bij , bjk -> bik", normal(2, 3, 1), other(2, 1, 4), free=(0, 1)),
    einsum("bi->bi", normal(2, 3)),
]
