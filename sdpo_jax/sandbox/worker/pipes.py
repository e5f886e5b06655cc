"""The pipes to the trainer and to forks, with buffers that programs cannot search.

A program can search its memory, which is a copy of the worker's. Two rules keep other
programs and their outputs out of it. Outputs of tests are only in memory that forks do
not inherit. Requests are only in buffers that are overwritten afterwards, never in
Python strings, whose content stays in memory after they are freed.
"""

import json
import mmap
import os
import select
import struct

# Read at the start: an orphan gets a new parent, so a changed parent means that the
# trainer has ended.
PARENT = os.getppid()
IDLE_POLL_MS = 5_000
READ_BYTES = SEND_BYTES = 1 << 16
# Head of a record: index in ENDINGS, signal, whether the test was confined, CPU
# seconds, and the sizes of the standard output and the report that follow.
RECORD = struct.Struct(">BBBdII")
ENDINGS = ("exit", "cpu", "wall", "output", "none")  # "none" ends an answer.


def fill(buffer):
    """Fill `buffer` from standard input; exits at its end or without the trainer."""
    view = memoryview(buffer)
    poller = select.poll()
    poller.register(0, select.POLLIN)
    while view:
        if not poller.poll(IDLE_POLL_MS):
            # Standard input may never end: a fork of the trainer can hold it open.
            if os.getppid() != PARENT:
                os._exit(0)
            continue
        size = os.readv(0, [view])
        if not size:
            os._exit(0)
        view = view[size:]
    return buffer


def write_all(fd, data):
    """Write all of `data`; a single write may take only a part."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def send(message):
    """Send a message to the trainer: its size in four bytes, then JSON."""
    text = json.dumps(message).encode()
    write_all(1, struct.pack(">I", len(text)) + text)


def unforked(size):
    """Memory of `size` bytes that forks do not inherit, so cannot read."""
    memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_DONTFORK)
    return memory


class Request:
    """A program and its tests, read from standard input. Only forks decode them."""

    def __init__(self):
        (size,) = struct.unpack(">I", fill(bytearray(4)))
        header = json.loads(fill(bytearray(size)))
        self.limits = header["limits"]
        self.stop_at_limit = header["stop_at_limit"]
        self.process_per = header["process_per"]
        self.program = fill(bytearray(header["program"]))
        # Pairs: whether the test is a call, and its JSON or else its standard input.
        self.tests = [(call, fill(bytearray(size))) for call, size in header["tests"]]

    def wipe(self):
        """Overwrite the program and its inputs."""
        for buffer in (self.program, *(buffer for _, buffer in self.tests)):
            buffer[:] = bytes(len(buffer))


class Output:
    """The bytes that a fork writes to a pipe, up to a limit."""

    def __init__(self):
        self._buffer, self._size, self._max_bytes = b"", 0, 0
        self.fd, self.is_open = -1, False

    def listen(self, fd, max_bytes):
        """Start to read from `fd`, up to `max_bytes`."""
        os.set_blocking(fd, False)
        self.fd, self.is_open, self._max_bytes = fd, True, max_bytes
        # The last read before the limit is detected can exceed it by READ_BYTES.
        if len(self._buffer) < max_bytes + READ_BYTES:
            self._buffer = unforked(max_bytes + READ_BYTES)

    def read(self):
        """Read once; return whether the output exceeds its limit."""
        view = memoryview(self._buffer)[self._size : self._size + READ_BYTES]
        try:
            size = os.readv(self.fd, [view])
        except BlockingIOError:  # A program can read its own output from the pipe.
            return False
        self.is_open = size > 0
        self._size += size
        return self._size > self._max_bytes

    def drain(self):
        """Read the rest after the fork has ended; return whether it is too much."""
        before = -1
        while self.is_open and self._size > before:
            before = self._size
            if self.read():
                return True
        return False

    def view(self):
        """The bytes that were read, up to the limit."""
        return memoryview(self._buffer)[: min(self._size, self._max_bytes)]

    def holds(self, text):
        """Whether the output contains `text`."""
        return self._buffer.find(text, 0, self._size) >= 0

    def lines(self):
        """The lines of the output, as views of its memory."""
        start = 0
        while start <= self._size:
            end = self._buffer.find(b"\n", start, self._size)
            end = self._size if end < 0 else end
            yield memoryview(self._buffer)[start:end]
            start = end + 1

    def clear(self):
        """Drop the output."""
        self._size = 0


class Answers:
    """Records for the trainer; small ones share a write, which wakes it once."""

    def __init__(self):
        self._buffer, self._size = unforked(SEND_BYTES), 0

    def add(self, ended, signal=0, confined=False, cpu_s=0.0, stdout=b"", report=b""):
        """Add the record of a test, or of the end of the answer."""
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
        """Send the added records and drop them."""
        write_all(1, memoryview(self._buffer)[: self._size])
        self._size = 0
