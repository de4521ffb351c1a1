"""A process of its own for work that must not share ours: with another allocator, or that may hang or crash.

It is spawned, not forked, so that it starts with fresh libraries, and CUDA can be used in it.
"""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any


class WorkerDied(RuntimeError):
    """A worker ended while it had work.

    Attributes:
        status: its exit status as a shell counts it: 128 + the signal that killed it.
    """

    def __init__(self, exitcode: int | None) -> None:
        self.status = 1 if not exitcode else exitcode if exitcode > 0 else 128 - exitcode
        super().__init__(f"a process that measures ended with status {self.status}")


class WorkerError(RuntimeError):
    """A call raised in its worker; the message is the worker's traceback."""


class Worker:
    """One process that serves one call at a time, until it is closed.

    Args:
        environment: its environment variables; None: those of this process.
    """

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        context = get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,))
        with nullcontext() if environment is None else _environment(environment):
            self._process.start()
        theirs.close()  # ours of the two: when theirs closes as well, we are told

    def call(self, function: Callable[..., Any], *arguments: Any, timeout: float | None = None) -> Any:
        """What ``function(*arguments)`` returns there; all three must be picklable.

        Raises:
            WorkerError: when it raised.
            WorkerDied: when the process ended meanwhile.
            TimeoutError: after ``timeout`` seconds, the process is killed.
        """
        try:
            self._connection.send((function, arguments))
            if not self._connection.poll(None if timeout is None else max(0.0, timeout)):
                self.kill()
                raise TimeoutError(f"took more than {timeout:.0f} s")
            error, result = self._connection.recv()
        except (EOFError, ConnectionError) as gone:
            self._process.join()
            raise WorkerDied(self._process.exitcode) from gone
        if error:
            raise WorkerError(error)
        return result

    def kill(self) -> None:
        """End the process at once."""
        self._process.kill()
        self.close()

    def close(self) -> None:
        """Let the process end after what it does now."""
        self._connection.close()
        self._process.join()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        if kind is None:
            self.close()
        else:
            self.kill()


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """These environment variables and no others inside the block: a spawned process takes them from its parent."""
    before, inside = dict(os.environ), dict(variables)
    os.environ.clear()
    os.environ.update(inside)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _serve(connection: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches both processes; ours is the one that ends this one
    while True:
        try:
            function, arguments = connection.recv()
        except EOFError:
            return
        try:
            answer = "", function(*arguments)
        except Exception:
            answer = traceback.format_exc(), None
        connection.send(answer)
