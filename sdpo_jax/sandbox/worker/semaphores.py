"""Semaphores for pools of threads, `multiprocessing.dummy`'s and their kin."""

RECURSIVE = 0  # The other kind, 1, counts.


class SemLock:
    """What `_multiprocessing.SemLock` is, for the threads of one process.

    The real ones are files in shared memory, which no test has.

    Args:
      kind: 0 for a lock that its holder may take again, 1 for a semaphore.
      value: of the semaphore.
      maxvalue: that it may have.
    """

    SEM_VALUE_MAX = 2**31 - 1
    name, handle = None, 0

    def __init__(self, kind, value, maxvalue, *_):
        import threading  # Few programs need it: only they pay for it.

        self.kind, self.maxvalue = kind, maxvalue
        is_lock = kind == RECURSIVE
        self._lock = threading.RLock() if is_lock else threading.Semaphore(value)
        self.release = self._lock.release

    def acquire(self, block=True, timeout=None):
        """Take it; false if that did not work in time."""
        if not block or timeout is None:
            return self._lock.acquire(block)
        return self._lock.acquire(timeout=max(timeout, 0))

    def __enter__(self):
        return self.acquire()

    def __exit__(self, *_):
        self.release()
