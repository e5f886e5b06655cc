"""What goes through the pipes to the trainer and to forks, out of programs' reach.

A program can search its memory, which is a copy of the worker's. So what other tests
gave out is only ever in memory that forks do not have, and a request in buffers that
are wiped after it: never in Python's objects, which keep their content when freed.
"""

import json
import mmap
import os
import select
import struct

# Asked for once: the parent of an orphan is another process, which does not end.
PARENT = os.getppid()
IDLE_POLL_MS = 5_000
READ_BYTES = SEND_BYTES = 1 << 16
# How a test ended (by its place in ENDINGS), its signal, whether it was confined, its
# CPU seconds, and the bytes of standard output and of report that follow.
RECORD = struct.Struct(">BBBdII")
ENDINGS = ("exit", "cpu", "wall", "output", "none")  # The last one ends the answer.


def fill(buffer):
    """`buffer`, filled from standard input; exits at its end, or when orphaned."""
    view = memoryview(buffer)
    poller = select.poll()
    poller.register(0, select.POLLIN)
    while view:
        if not poller.poll(IDLE_POLL_MS):
            # A fork of the trainer may hold the other end open for ever.
            if os.getppid() != PARENT:
                os._exit(0)
            continue
        size = os.readv(0, [view])
        if not size:
            os._exit(0)
        view = view[size:]
    return buffer


def write_all(fd, data):
    """Write all of `data`."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def send(message):
    """Write one message to the trainer: four bytes of length, then JSON."""
    text = json.dumps(message).encode()
    write_all(1, struct.pack(">I", len(text)) + text)


def unforked(size):
    """Memory of `size` bytes that no fork has: it cannot be read, nor costs a copy."""
    memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_DONTFORK)
    return memory


class Request:
    """One program and its tests, read from standard input; forks decode them."""

    def __init__(self):
        (size,) = struct.unpack(">I", fill(bytearray(4)))
        header = json.loads(fill(bytearray(size)))
        self.limits = header["limits"]
        self.stop_at_limit = header["stop_at_limit"]
        self.process_per = header["process_per"]
        self.program = fill(bytearray(header["program"]))
        # Whether each is a call, and its JSON if so, else the text of standard input.
        self.tests = [(call, fill(bytearray(size))) for call, size in header["tests"]]

    def wipe(self):
        """Leave nothing of it in memory."""
        for part in (self.program, *(part for _, part in self.tests)):
            part[:] = bytes(len(part))


class Output:
    """What one fork writes to one pipe, as far as its limit."""

    def __init__(self):
        self._buffer, self._size, self._most = b"", 0, 0
        self.fd, self.is_open = -1, False

    def listen(self, fd, most):
        """Take what comes from `fd`, `most` bytes."""
        os.set_blocking(fd, False)
        self.fd, self.is_open, self._most = fd, True, most
        if len(self._buffer) < most + READ_BYTES:
            self._buffer = unforked(most + READ_BYTES)

    def read(self):
        """Read once; true when there is too much."""
        view = memoryview(self._buffer)[self._size : self._size + READ_BYTES]
        try:
            size = os.readv(self.fd, [view])
        except BlockingIOError:  # The program may have read its own output.
            return False
        self.is_open = size > 0
        self._size += size
        return self._size > self._most

    def drain(self):
        """Read what an ended fork has left; true when there is too much."""
        before = -1
        while self.is_open and self._size > before:
            before = self._size
            if self.read():
                return True
        return False

    def view(self):
        """What was read."""
        return memoryview(self._buffer)[: min(self._size, self._most)]

    def holds(self, text):
        """Whether `text` was read."""
        return self._buffer.find(text, 0, self._size) >= 0

    def lines(self):
        """Views of what was read, line by line."""
        start = 0
        while start <= self._size:
            end = self._buffer.find(b"\n", start, self._size)
            end = self._size if end < 0 else end
            yield memoryview(self._buffer)[start:end]
            start = end + 1

    def clear(self):
        """Forget it all."""
        self._size = 0


class Answers:
    """What goes to the trainer, sent together where it is small: each wakes it up."""

    def __init__(self):
        self._buffer, self._size = unforked(SEND_BYTES), 0

    def add(self, ended, signal=0, confined=False, cpu_s=0.0, stdout=b"", report=b""):
        """The record of one test, or of the end."""
        numbers = (ENDINGS.index(ended), signal, confined, cpu_s)
        head = RECORD.pack(*numbers, len(stdout), len(report))
        for data in (head, stdout, report):
            end = self._size + len(data)
            if end > SEND_BYTES:
                self.send()
                write_all(1, data)
            else:
                self._buffer[self._size : end] = data
                self._size = end

    def send(self):
        """Send what was added, and forget it."""
        write_all(1, memoryview(self._buffer)[: self._size])
        self._size = 0
