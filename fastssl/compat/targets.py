"""Teacher probabilities that are not computed: what the published interfaces hand from one method to the next."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor


class TeacherProbabilities:
    """The tensor ``softmax(logits / temperature - column_potential)``, [..., K], kept as its parts.

    Published losses take the teacher's probabilities as a tensor that another method has returned. This stands in its
    place, so that the loss can read the logits instead: views of the leading dimensions (``view``, ``reshape``,
    ``flatten``, ``squeeze``, ``unsqueeze``, ``chunk``, ``split``, ``unbind``, indexing, iteration) stay such objects.
    Everything else that one does with a tensor, methods and functions of torch, acts on :meth:`probabilities`.

    Args:
        logits: of the teacher, [..., K]. Not copied: they must not change until the loss has been computed.
        temperature: above 0.
        column_potential: [K]: a centre over the temperature, or that of Sinkhorn-Knopp.
    """

    def __init__(self, logits: Tensor, temperature: float, column_potential: Tensor) -> None:
        self.logits = logits.detach()
        self.temperature = temperature
        self.column_potential = column_potential

    def probabilities(self) -> Tensor:
        """The tensor itself, [..., K], float32 (float64 for float64 logits); computed anew at each call."""
        wide = self.logits.to(torch.promote_types(self.logits.dtype, torch.float32))
        return torch.softmax(wide / self.temperature - self.column_potential, dim=-1)

    def __getitem__(self, index: Any) -> Any:
        plain = index if isinstance(index, tuple) else (index,)
        if len(plain) < self.logits.ndim and all(isinstance(part, (int, slice)) for part in plain):
            return self._like(self.logits[index])
        return self.probabilities()[index]

    def __len__(self) -> int:
        return len(self.logits)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.unbind(0))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name in ("logits", "temperature", "column_potential"):  # also while unpickling
            raise AttributeError(f"TeacherProbabilities has no attribute {name!r}")
        if name in ("shape", "ndim", "size", "dim", "device", "numel"):
            return getattr(self.logits, name)
        if name in _VIEWS:
            return lambda *args, **kwargs: self._view(name, *args, **kwargs)
        return getattr(self.probabilities(), name)

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        def plain(value: Any) -> Any:
            if isinstance(value, TeacherProbabilities):
                return value.probabilities()
            return type(value)(map(plain, value)) if type(value) in (list, tuple) else value

        return function(*plain(args), **{name: plain(value) for name, value in (kwargs or {}).items()})

    def _view(self, name: str, *args: Any, **kwargs: Any) -> Any:
        result = getattr(self.logits, name)(*args, **kwargs)
        parts = result if isinstance(result, (list, tuple)) else [result]
        # Rows that are still whole are rows of the same probabilities. A view that cut or moved them is not one of
        # ours: then the probabilities are what it is a view of.
        if any(part.shape[-1:] != self.logits.shape[-1:] for part in parts):
            return getattr(self.probabilities(), name)(*args, **kwargs)
        return tuple(map(self._like, parts)) if isinstance(result, (list, tuple)) else self._like(result)

    def _like(self, logits: Tensor) -> TeacherProbabilities:
        return TeacherProbabilities(logits, self.temperature, self.column_potential)


# Methods of a tensor that leave rows whole whenever the last dimension keeps its size.
_VIEWS = ("view", "reshape", "flatten", "squeeze", "unsqueeze", "chunk", "split", "unbind")


def as_logits(targets: Sequence[Any], dtype: torch.dtype) -> dict[str, Any]:
    """The arguments of :func:`fastssl.functional.soft_target_cross_entropy` that stand for given probabilities.

    Args:
        targets: T times probabilities, [B, K] each or [B, L, K] each: either :class:`TeacherProbabilities` of one
            temperature, whose logits are used as they are, or anything else: tensors, whose logarithm is taken, one
            copy in float32. Rows of those need not sum to 1.
        dtype: of the student's logits.

    Returns:
        ``teacher``, ``teacher_temperature``, ``column_potential`` and ``row_potential``.
    """
    if all(isinstance(t, TeacherProbabilities) and t.temperature == targets[0].temperature for t in targets):
        potentials = [t.column_potential for t in targets]
        one = all(potential is potentials[0] for potential in potentials)
        return {
            "teacher": [t.logits for t in targets],
            "teacher_temperature": targets[0].temperature,
            "column_potential": potentials[0] if one else torch.stack(potentials),
            "row_potential": None,
        }
    wide = torch.promote_types(dtype, torch.float32)
    plain = [t.probabilities() if isinstance(t, TeacherProbabilities) else t.detach() for t in targets]
    logits = [t.to(wide).clamp(min=torch.finfo(wide).tiny).log() for t in plain]  # 0 log 0 must stay 0
    zeros = logits[0].new_zeros(len(logits), *logits[0].shape[:-1])
    return {"teacher": logits, "teacher_temperature": 1.0, "column_potential": None, "row_potential": zeros}
