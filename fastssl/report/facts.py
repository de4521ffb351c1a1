"""What a report says about a run: the data, the time it took, and what it ran on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastssl import environment
from fastssl.data.base import ImageData

_PACKAGES = ("fastssl", "torch", "lightning", "timm", "python")


def data_facts(data: ImageData) -> list[tuple[str, str]]:
    """Which images, how many, and of how many classes."""
    root = getattr(data, "root", None)
    facts = [("data", type(data).__name__ + (f", {root}" if root else ""))]
    counts = [
        f"{count:,} {half}" for half, count in (("training", _size(data.train)), ("test", _size(data.test))) if count
    ]
    if counts:
        facts.append(("images", ", ".join(counts)))
    facts.append(("classes", f"{data.num_classes:,}" if data.num_classes else "none: the images have no labels"))
    return facts


def _size(images: Any) -> int | None:
    try:
        return len(images)
    except TypeError:  # a stream
        return None


def machine_facts() -> list[tuple[str, str]]:
    """Versions and hardware of this process."""
    versions, machine, commit = environment.versions(), environment.machine(), environment.commit()
    words = ", ".join(f"{name} {versions[name]}" for name in _PACKAGES if versions.get(name))
    facts = [("versions", words)]
    if commit is not None:
        facts.append(("commit", commit["commit"] + (" with changes" if commit["dirty"] else "")))
    cpu = f"{machine['cpu'] or machine['architecture']}, {machine['cores_usable']} cores"
    cuda = machine["cuda"]
    facts.append(("machine", cpu if cuda is None else f"{cuda['count']} x {cuda['name']}; {cpu}"))
    return facts


def duration(seconds: float) -> str:
    """Seconds in words."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def training_facts(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What `fastssl fit` measured, as far as it is there."""
    facts = []
    if (epochs := results.get("epochs")) is not None:
        facts.append(("epochs", f"{epochs}"))
    if (seconds := results.get("training_seconds")) is not None:
        facts.append(("training time", duration(seconds)))
    if (rate := results.get("images_per_second")) is not None:
        facts.append(("throughput", f"{rate:,.0f} images/s" if rate >= 10 else f"{rate:.2g} images/s"))
    if (memory := results.get("peak_memory_bytes")) is not None:
        facts.append(("peak memory", f"{memory / 2**30:.2f} GiB"))
    return facts
