"""How far gradient models reach: whole classifiers, held against float64 autograd and against every runtime."""
