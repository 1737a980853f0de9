"""What the frame codec asks of a device: blocks of lanes, evaluated while the CPU codes others.

A Lanes object holds the state of `lanes` lanes from position 0 on, and evaluates `count` positions
of each at a time, in one of these modes:

    LOGITS      (lanes, count, 256) int32: for tests
    DISTANCES   (lanes, count, 256) uint16: greatest logit - logit, at most 65535: for the mixer.
                512 bytes a byte; weights would be 1024, and say no more: from a distance of
                31 * 1024 on they are 0.
    INTERVALS   (lanes, count, 2) uint32: lo and freq of the byte given for each position
    SEARCH      (lanes, 1, 2): lo and freq of the byte that holds the slot given for each lane, and
                the byte itself, which is also the lane's next input
"""

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

LOGITS, DISTANCES, INTERVALS, SEARCH = "logits", "distances", "intervals", "search"


@dataclass(frozen=True, slots=True)
class Result:
    """Arrays that stay as they are until the lanes are launched again."""

    rows: NDArray[Any]
    found: NDArray[np.uint8] | None = None  # (lanes): SEARCH


class Lanes(Protocol):
    def restart(self) -> None:
        """Go back to position 0, with new lanes."""

    def launch(
        self, inputs: NDArray[np.uint8] | None, given: NDArray[np.integer[Any]] | None
    ) -> None:
        """Start to evaluate the next block; both arrays are (lanes, count) and are copied.

        inputs: the bytes before those that are predicted, 0 at position 0; None in the mode SEARCH.
        given: bytes (INTERVALS) or slots (SEARCH).
        """

    def wait(self) -> Result:
        """What the last launch has made."""
