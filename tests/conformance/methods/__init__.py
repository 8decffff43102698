"""Every method with its laws, one module a family, collected here.

Add a method: one line in `ROWS` of its family, with the laws of its kind beside those of all methods, and a variant in
`WRONG` for each new law.
"""

from conformance.methods import adversarial, cams, credible, deeplift, gradients, isa, path, perturbation
from conformance.methods.laws import Row, Wrong

FAMILIES = (isa, credible, adversarial, path, gradients, deeplift, perturbation, cams)

ROWS: dict[str, Row] = {id: row for family in FAMILIES for id, row in family.ROWS.items()}
WRONG: Wrong = [entry for family in FAMILIES for entry in family.WRONG]
