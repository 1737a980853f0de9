"""What the calls of one object share: they take turns, and what has failed once fails again."""

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


class Failure:
    """`with failure:` keeps the error that ends the block, and raises it in the place of every
    later one.  KeyboardInterrupt and its like, which nobody wants twice, become an OSError that
    says `interrupted`."""

    def __init__(self, interrupted: str) -> None:
        self._interrupted = interrupted
        self._error: Exception | None = None

    def __bool__(self) -> bool:
        return self._error is not None

    def check(self) -> None:
        """Raise what is kept; its old traceback would hold what those calls were given."""
        if self._error is not None:
            raise self._error.with_traceback(None)

    def forget(self) -> None:
        self._error = None

    def __enter__(self) -> None:
        self.check()

    def __exit__(self, kind: object, error: BaseException | None, where: object) -> None:
        if isinstance(error, Exception):
            self._error = error
        elif error is not None:
            self._error = OSError(self._interrupted)
