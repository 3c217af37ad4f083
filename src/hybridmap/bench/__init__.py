"""How fast operators, backbones and a whole training step run here, always beside something else measured in the same run.

``clock.py`` takes time and memory, ``operators.py`` holds the operators' problems and who takes part, ``peers.py`` what others
compute the scan with, ``products.py`` the matrix products of a step (its floor), ``step.py`` the step itself, ``models.py`` the
backbones side by side.
"""
