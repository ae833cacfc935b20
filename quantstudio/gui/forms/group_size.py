"""Suggests a group size: a scheme with 2 or 3 bits wants smaller groups than int4.

With few bits the points of a grid lie far apart; a scale for every 32 weights draws them together where weights are
small, for 0.375 bits more per weight than groups of 128. Rounded to nearest, the starter model moves by 0.195 nats of
KL divergence at 3 bits in groups of 128 and by 0.126 in groups of 32; at 2 bits by 1.27 and 0.78. So the size follows
the scheme as long as nobody has chosen another.
"""

from __future__ import annotations

from quantstudio.core.schemes import SCHEMES
from quantstudio.gui.forms.editors import Editor

USUAL, FEW_BITS_SIZE = 128, 32
FEW_BITS = frozenset(scheme().kind for scheme in SCHEMES if scheme().weight_spec().bits in (2, 3))
"""Kinds of schemes with 2 or 3 bits."""
HINT = (
    "With 2 or 3 bits, groups of 32 lose about a third less than groups of 128 (measured on the starter model), for "
    "0.375 bits more per weight."
)


class GroupSizeHelper:
    """Changes the size when the person picks a scheme, unless they had picked a size of their own."""

    def __init__(self, scheme: Editor, size: Editor) -> None:
        self._scheme, self._size = scheme, size
        self._suggested = USUAL
        scheme.changed.connect(self._follow)

    def _follow(self) -> None:
        wanted = FEW_BITS_SIZE if self._scheme.value() in FEW_BITS else USUAL
        if self._size.value() == self._suggested:
            self._size.set_value(wanted)
        self._suggested = wanted


def hint(kind: str, size: object) -> str:
    """What to say of this size under this scheme; empty when nothing."""
    large = size == "channel" or (isinstance(size, int) and size > 2 * FEW_BITS_SIZE)
    return HINT if kind in FEW_BITS and large else ""
