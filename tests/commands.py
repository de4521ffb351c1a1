"""Commands in processes of their own that start at once.

Importing PyTorch, Lightning and timm takes a command longer than what tests let it do. These processes are forked from
one that has imported them and has computed nothing.
"""

import io
import multiprocessing
import os
import resource
import runpy
import signal
import subprocess
import sys
import threading

import torch

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload([
    "lightning.pytorch.cli", "matplotlib.pyplot", "sklearn.manifold", "timm", "torchvision", "torchmetrics",
    "tensorboard", "fastssl.cli.fit", "fastssl.cli.method", "fastssl.data", "fastssl.evaluate", "fastssl.functional",
    "fastssl.losses", "fastssl.methods", "fastssl.report",
])  # fmt: skip


class Command:
    """``fastssl`` with arguments, a Python file with arguments, or code, as ``subprocess.Popen`` would start it.

    Args:
        *arguments: of ``fastssl``; a path that ends in .py and arguments of that file; or "-c" and code.
        cwd: the folder it starts in.
        stderr: ``subprocess.STDOUT`` for one stream of both.
        file_size: bytes that no file may exceed, as if the disk were full.
        threads: of PyTorch.
    """

    def __init__(self, *arguments, cwd=None, stderr=None, file_size=None, threads=None):
        out, out_end = SERVER.Pipe(duplex=False)
        error, error_end = SERVER.Pipe(duplex=False)
        ends = (out_end, out_end if stderr == subprocess.STDOUT else error_end)
        self._process = SERVER.Process(target=_run, args=(arguments, ends, cwd or os.getcwd(), file_size, threads))
        self._process.start()
        out_end.close()
        error_end.close()
        self.stdout, self.stderr = (os.fdopen(os.dup(end.fileno()), "r") for end in (out, error))

    @property
    def returncode(self):
        return self._process.exitcode

    def poll(self):
        return self._process.exitcode

    def send_signal(self, number):
        os.kill(self._process.pid, number)

    def kill(self):
        self._process.kill()

    def wait(self, timeout=None):
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("fastssl", timeout)
        return self.returncode

    def communicate(self, timeout=240):
        """What it printed, after its end."""
        errors = []
        reader = threading.Thread(target=lambda: errors.append(self.stderr.read()))
        reader.start()
        ending = threading.Timer(timeout, self.kill)
        ending.start()
        printed = self.stdout.read()
        reader.join()
        ending.cancel()
        self.wait(timeout)
        return printed, errors[0]


def run(*arguments, timeout=240, **options):
    """A command from start to end, as ``subprocess.run`` gives it."""
    command = Command(*arguments, **options)
    printed, errors = command.communicate(timeout)
    return subprocess.CompletedProcess(arguments, command.returncode, printed, errors)


def _run(arguments, ends, cwd, file_size, threads):
    for number, end in zip((1, 2), ends, strict=True):
        os.dup2(end.fileno(), number)
    for end in ends:
        end.close()
    sys.stdout, sys.stderr = (io.TextIOWrapper(os.fdopen(number, "wb", 0), write_through=True) for number in (1, 2))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(cwd)
    if threads is not None:
        torch.set_num_threads(threads)
    if file_size is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, file_size))
    if arguments[0] == "-c":
        exec(arguments[1], {"__name__": "__main__"})
    elif arguments[0].endswith(".py"):
        sys.argv = list(arguments)
        runpy.run_path(arguments[0], run_name="__main__")
    else:
        from fastssl.cli import main

        sys.argv = ["fastssl", *arguments]
        sys.exit(main(list(arguments)))
