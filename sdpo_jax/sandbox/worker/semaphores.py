"""Semaphores without shared memory, for thread pools of `multiprocessing`."""

RECURSIVE = 0  # Kind 1 is a counting semaphore.


class SemLock:
    """Replaces `_multiprocessing.SemLock`, for the threads of one process only.

    The original creates files in shared memory, which tests may not do.

    Args:
      kind: 0 for a recursive lock, 1 for a semaphore.
      value: initial value of the semaphore.
      maxvalue: maximal value of the semaphore.
    """

    SEM_VALUE_MAX = 2**31 - 1
    name, handle = None, 0

    def __init__(self, kind, value, maxvalue, *_):
        import threading  # Slow to import, and few programs need it.

        self.kind, self.maxvalue = kind, maxvalue
        is_lock = kind == RECURSIVE
        self._lock = threading.RLock() if is_lock else threading.Semaphore(value)
        self.release = self._lock.release

    def acquire(self, block=True, timeout=None):
        """Acquire the lock; return false if it was not free in time."""
        if not block or timeout is None:
            return self._lock.acquire(block)
        return self._lock.acquire(timeout=max(timeout, 0))

    def __enter__(self):
        return self.acquire()

    def __exit__(self, *_):
        self.release()
