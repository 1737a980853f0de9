"""A lock for objects whose calls take turns."""

import threading


class Turns:
    """Lets one thread in after another.  A signal's handler that calls in while its thread is
    inside gets RuntimeError, as with io.BufferedWriter: it would wait for itself."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._inside = False

    def __enter__(self) -> None:
        self._lock.acquire()
        if self._inside:
            self._lock.release()
            raise RuntimeError("reentrant call, from a signal's handler?")
        self._inside = True

    def __exit__(self, *_: object) -> None:
        self._inside = False
        self._lock.release()
