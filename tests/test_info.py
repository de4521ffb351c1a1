"""``fastssl info``: versions, machine, and a reason for each backend that is passed over."""

from __future__ import annotations

import json
import re
import sys

import commands
import pytest

import fastssl
from fastssl import _extension, backends, environment
from fastssl.cli import info
from fastssl.ops import registry


@pytest.fixture
def without_kernels(monkeypatch):
    """As on a machine without a compiler."""
    monkeypatch.setattr(_extension, "_load", lambda module: (None, "the C++ extension was not built: no compiler"))
    registry._reason.cache_clear()
    yield
    registry._reason.cache_clear()


def test_every_operation_device_and_dtype_has_an_entry_and_a_reason_for_what_is_passed_over():
    entries = info.operations()
    assert len(entries) == len(backends.PREFERENCE) * sum(map(len, registry.DTYPES.values()))
    for entry in entries:
        order = backends.PREFERENCE[entry["device"]]
        assert entry["backend"] in order
        assert list(entry["passed_over"]) == list(order[: order.index(entry["backend"])])
        assert all(reason.strip() for reason in entry["passed_over"].values())


def test_a_missing_extension_is_explained_without_a_warning(without_kernels, capsys, recwarn):
    assert info.main([]) == 0
    printed = capsys.readouterr().out
    assert "missing: the C++ extension was not built: no compiler" in printed
    assert re.search(r"cpu +chunked +float32, bfloat16, float16, float64\n +not cpp: the C\+\+ extension", printed)
    assert not [warning for warning in recwarn if "fastssl" in str(warning.message)]


def test_a_family_without_cuda_kernels_is_passed_over_with_the_reason():
    for entry in info.operations():
        if entry["device"] == "cuda" and entry["operation"] not in ("view_parameters", "augment_views"):
            assert entry["passed_over"]["cuda"] == "this family has no CUDA C++ kernels"


def test_missing_cuda_kernels_are_explained(monkeypatch, capsys):
    monkeypatch.setattr(_extension, "_load", lambda module: (None, "the CUDA extension was not built: no nvcc"))
    assert info.main([]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"CUDA kernels\n  missing: the CUDA extension was not built: no nvcc\n", printed)


def test_a_missing_triton_is_explained(monkeypatch):
    monkeypatch.setattr(registry, "backend_module", _without_triton(registry.backend_module))
    registry._reason.cache_clear()
    try:
        on_cuda = [entry for entry in info.operations() if entry["device"] == "cuda"]
    finally:
        registry._reason.cache_clear()
    without = [entry for entry in on_cuda if entry["backend"] != "cuda"]
    assert without and all(entry["backend"] == "chunked" for entry in without)
    assert all("No module named 'triton'" in entry["passed_over"]["triton"] for entry in without)


def _without_triton(backend_module):
    def load(family, backend):
        if backend == "triton":
            raise ModuleNotFoundError("No module named 'triton'")
        return backend_module(family, backend)

    return load


def test_a_forced_backend_is_shown_with_the_reason_where_it_cannot_serve():
    with fastssl.backend("triton"):
        document = info.collect()
        text = info.as_text(document)
    assert document["forced_backend"] == "triton" and "(forced: triton)" in text
    float64 = [entry for entry in document["operations"] if entry["dtype"] == "float64"]
    for entry in float64:
        assert entry["backend"] is None and "'triton' cannot serve torch.float64" in entry["passed_over"]["triton"]
    assert re.search(r"NONE +.*float64", text)


def test_the_json_document_has_these_keys(capsys):
    assert info.main(["--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert set(document) == {
        "versions", "commit", "machine", "threads", "allocator", "extension", "cuda_extension",
        "float32_matmul_precision", "forced_backend", "operations",
    }  # fmt: skip
    assert document["versions"]["fastssl"] == fastssl.__version__
    assert set(document["versions"]) >= {"python", "torch", "triton", "numpy", "lightning", "timm", "lightly"}
    assert document["threads"]["torch"] >= 1 and document["machine"]["cores"] >= 1


def test_a_package_that_is_not_installed_has_no_version(monkeypatch):
    monkeypatch.setattr(environment, "OPTIONAL_PACKAGES", ("a-package-that-nobody-has",))
    assert environment.versions()["a-package-that-nobody-has"] is None
    assert re.search(r"a-package-that-nobody-has +not installed", info.as_text(info.collect()))


def test_the_allocator_settings_are_recorded(monkeypatch):
    monkeypatch.setenv("MALLOC_TOP_PAD_", "1024")
    assert environment.allocator()["MALLOC_TOP_PAD_"] == "1024"


def test_a_wrong_option_is_named(capsys):
    assert info.main(["--jsn"]) == 2
    assert "--jsn" in capsys.readouterr().err


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's allocator")
@pytest.mark.parametrize("environment", [{}, {"MALLOC_ARENA_MAX": "2"}])
def test_pages_are_kept_unless_the_environment_sets_the_allocator_up(environment):
    # Each block is smaller than the one before: it fits where that one was, wherever aligning has left remainders.
    code = (
        f"import os, resource, torch; os.environ |= {environment}\n"
        "from fastssl.environment import keep_pages\n"
        "def faults():\n"
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    for i in range(4): torch.ones(10_000_000 - 10_000 * i)\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before\n"
        "before = faults()\n"
        "kept = keep_pages()\n"
        "torch.ones(10_000_000)\n"
        "print(kept, before, faults())\n"
    )
    done = commands.run("-c", code)
    kept, before, after = done.stdout.split()
    if environment:
        assert kept == "False"
    elif kept == "True":  # False: no glibc
        assert int(after) < int(before) / 2
