"""The prototype layer fused with the loss, on every backend that this machine has, against the unfused formula."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from harness import BACKENDS, DTYPES, LargestTensor, assert_as_accurate_as_eager, poisoned_outputs, serving

import fastssl
from fastssl.functional import prototype_cross_entropy
from fastssl.ops import registry
from fastssl.ops.prototypes import composed, reference

OPERATION = "prototype_cross_entropy"
RULES = {
    "normalize_weight": True,
    "student_scale": 10.0,
    "teacher_scale": 25.0,
    "skip_same_view": True,
    "factor": 0.3,
    "column_sum": True,
    "chunk": 3,
    "student_gradient": True,
    "weight_gradient": True,
}


def random(*shape, dtype=torch.float32, device="cpu", seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype).to(device)


def problem(views=4, teachers=2, images=7, dim=16, prototypes=50, dtype=torch.float32, device="cpu"):
    """Features of the students, prototypes, features of the teachers and their prototypes."""
    shapes = (views, images, dim), (prototypes, dim), (teachers, images, dim), (prototypes, dim)
    return [random(*shape, dtype=dtype, device=device, seed=seed) for seed, shape in enumerate(shapes)]


def formula(
    features, weight, teacher, *, normalize_weight=True, column_potential=None, row_potential=None,
    skip_same_view=True, image_weight=None, reduction="mean", student_temperature=0.1, teacher_temperature=0.04,
):  # fmt: skip
    """The loss pair by pair, from logits that exist; ``teacher`` are logits [T, B, K]."""
    logits = features @ (F.normalize(weight, dim=1) if normalize_weight else weight).T
    exponent = teacher / teacher_temperature
    if column_potential is not None:
        exponent = exponent - (column_potential if column_potential.ndim == 1 else column_potential[:, None])
    normaliser = exponent.logsumexp(2) if row_potential is None else row_potential
    targets = (exponent - normaliser[:, :, None]).exp()
    losses, pairs = torch.zeros_like(logits[0, :, 0]), 0
    for t, target in enumerate(targets):
        for s, view in enumerate(logits):
            if not (skip_same_view and s == t):
                losses = losses - (target * (view / student_temperature).log_softmax(1)).sum(1)
                pairs += 1
    if image_weight is not None:
        losses = image_weight * losses
    return losses.sum() if reduction == "sum" else losses.mean() / pairs


def with_gradients(function, *inputs):
    inputs = [x.detach().clone().requires_grad_() for x in inputs]
    result = function(*inputs)
    loss = result[0] if isinstance(result, tuple) else result
    return loss.detach(), *torch.autograd.grad(loss, inputs)


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize("chunk", [1, 3, 100, None])
@pytest.mark.parametrize(
    "given",
    [
        {},
        {"normalize_weight": False, "student_temperature": 3.0, "teacher_temperature": 2.0},
        {"column_potential": (50,), "skip_same_view": False},
        {"column_potential": (2, 50), "row_potential": (2, 7), "teacher_temperature": 1.0},
        {"image_weight": (7,), "reduction": "sum"},
    ],
    ids=["plain", "lengths matter", "column potential", "all potentials", "weights"],
)
def test_equals_the_layer_and_the_loss_apart(backend, device, chunk, given):
    """In float64: value, gradients of features and prototypes, column sums; teachers as features and as logits."""
    with serving(backend, device, torch.float64, OPERATION):
        features, weight, of_teacher, teacher_weight = problem(dtype=torch.float64, device=device)
        rules = {
            name: random(*value, dtype=torch.float64, device=device, seed=9).abs()
            if isinstance(value, tuple)
            else value
            for name, value in given.items()
        }
        if "image_weight" in rules:
            rules["image_weight"][[0, 4]] = 0
        unit = F.normalize(teacher_weight, dim=1) if rules.get("normalize_weight", True) else teacher_weight
        teacher = of_teacher @ unit.T
        expected = with_gradients(lambda f, w: formula(f, w, teacher, **rules), features, weight)
        for targets in (
            {"teacher_features": of_teacher, "teacher_weight": teacher_weight},
            {"teacher": teacher},
            {"teacher": list(teacher)},
        ):
            with poisoned_outputs():
                found = with_gradients(
                    lambda f, w, targets=targets: prototype_cross_entropy(f, w, **targets, **rules, chunk=chunk),
                    features,
                    weight,
                )
                _, total = prototype_cross_entropy(
                    features, weight, **targets, **rules, chunk=chunk, return_column_sum=True
                )
            torch.testing.assert_close(found, expected)
            counted = teacher if "image_weight" not in rules else teacher[:, rules["image_weight"] != 0]
            torch.testing.assert_close(total, counted.sum((0, 1)))


def operator(inputs, **rules):
    student, weight, of_teacher, teacher_weight = inputs
    return torch.ops.fastssl.prototype_cross_entropy(
        student, weight, [], of_teacher, teacher_weight, None, None, None, **{**RULES, **rules},
        backend=fastssl.backends.forced(),
    )  # fmt: skip


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("dim", "prototypes"), [(3, 5), (33, 97), (64, 300)])
def test_is_as_accurate_as_eager(backend, device, dtype, dim, prototypes):
    with serving(backend, device, dtype, OPERATION):
        inputs = problem(dim=dim, prototypes=prototypes, dtype=dtype, device=device)
        with poisoned_outputs():
            results = operator(inputs)
        arguments = [], inputs[2], inputs[3], None, None, None
        eager = reference.prototype_cross_entropy(*inputs[:2], *arguments, **RULES)
        wide = [x.double() for x in inputs]
        truth = reference.prototype_cross_entropy(*wide[:2], [], *wide[2:], None, None, None, **RULES)
        # A logit is a sum of dim terms, each below the features' size; pairs: 6, images: 7.
        size = wide[0].abs().sum(2).max()
        rounding = torch.finfo(dtype).eps / torch.finfo(torch.float32).eps if dtype == torch.bfloat16 else 1.0
        of_loss = torch.full((1,), 0.3 * 6 * 7 * 10 * size.item() * max(1.0, rounding / 16), dtype=torch.float64)
        assert_as_accurate_as_eager(*(t[0].reshape(1) for t in (results, eager, truth)), of_loss, "loss")
        # Gradients of logits add up to 2 x pairs x scale per row; their argument is rounded too.
        of_logits = 0.3 * 10 * 2 * 2 * (1 + min(10 * size.item(), 20.0))
        terms = (torch.tensor(of_logits) * torch.ones_like(wide[0])).cpu()
        assert_as_accurate_as_eager(results[2], eager[2], truth[2], terms, "gradient of the features")
        norm = wide[1].norm(dim=1, keepdim=True)
        terms = (of_logits * wide[0].abs().sum((0, 1)) / norm).cpu()
        assert_as_accurate_as_eager(results[3], eager[3], truth[3], terms, "gradient of the prototypes")
        of_sum = wide[2].abs().sum() * torch.ones(prototypes, dtype=torch.float64, device=device)
        assert_as_accurate_as_eager(results[1], eager[1], truth[1], of_sum.cpu(), "column sums", refuses_zeros=False)


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_float16_gradients_do_not_vanish_before_a_loss_scaler_multiplies_them(backend, device):
    with serving(backend, device, torch.float16, OPERATION):
        features, weight, of_teacher, _ = problem(prototypes=3000, dtype=torch.float16, device=device)
        flat = {"student_temperature": 200.0, "teacher_temperature": 5.0}  # many small probabilities
        scale = 2.0**16
        found = with_gradients(
            lambda f, w: scale * prototype_cross_entropy(f, w, teacher_features=of_teacher, **flat), features, weight
        )
        teacher = of_teacher.double() @ F.normalize(weight.double(), dim=1).T
        truth = with_gradients(lambda f, w: scale * formula(f, w, teacher, **flat), features.double(), weight.double())
        assert (truth[2].abs() / scale).median() < 2.0**-25, "float16 would not have rounded these to zero"
        for gradient, expected in zip(found[1:], truth[1:], strict=True):
            assert gradient.dtype == torch.float16
            error = (gradient.double() - expected).abs()
            assert (error <= torch.finfo(torch.float16).eps * expected.abs() + 1e-5 * expected.abs().max()).all()


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_images_of_weight_zero_are_not_read(backend, device):
    with serving(backend, device, operation=OPERATION):
        features, weight, of_teacher, _ = problem(device=device)
        kept = torch.tensor([1, 2, 5], device=device)
        image_weight = torch.zeros(7, device=device)
        image_weight[kept] = 1.0
        bad = features.clone()
        bad[:, image_weight == 0] = float("nan")
        bad_teacher = of_teacher.clone()
        bad_teacher[:, image_weight == 0] = float("inf")

        def loss(f, w):
            return prototype_cross_entropy(
                f, w, teacher_features=bad_teacher, image_weight=image_weight, reduction="sum", chunk=2
            )

        found = with_gradients(loss, bad, weight)
        expected = with_gradients(
            lambda f, w: prototype_cross_entropy(f, w, teacher_features=of_teacher[:, kept], reduction="sum"),
            features[:, kept],
            weight,
        )
        torch.testing.assert_close((found[0], found[1][:, kept], found[2]), expected)
        assert (found[1][:, image_weight == 0] == 0).all()


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_nan_in_nan_out(backend, device):
    with serving(backend, device, operation=OPERATION):
        features, weight, of_teacher, _ = problem(device=device)
        features[1, 3, 2] = float("nan")
        loss, d_features, d_weight = with_gradients(
            lambda f, w: prototype_cross_entropy(f, w, teacher_features=of_teacher), features, weight
        )
        assert loss.isnan() and d_features[1, 3].isnan().all() and d_weight.isnan().all()
        assert d_features[:, 4].isfinite().all()


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_logits_of_all_images_never_exist(backend, device):
    with serving(backend, device, operation=OPERATION):
        features, weight, of_teacher, _ = problem(views=4, images=60, dim=4, prototypes=500, device=device)
        module = registry.choose(OPERATION, device, features.dtype, backend)
        with LargestTensor() as seen:
            module.prototype_cross_entropy(
                features, weight, [], of_teacher, None, None, None, None, **{**RULES, "chunk": 2}
            )
        assert seen.numbers == 4 * 2 * 500  # of 4 x 60 x 500


def test_chunks_are_as_large_as_their_memory_allows(monkeypatch):
    monkeypatch.setitem(composed.CHUNK_BYTES, "cpu", 4 * 3 * (4 + 2) * 500)  # three images of four and two views
    features, weight, of_teacher, _ = problem(views=4, images=60, dim=4, prototypes=500)
    with LargestTensor() as seen:
        registry.choose(OPERATION, "cpu", features.dtype, "chunked").prototype_cross_entropy(
            features, weight, [], of_teacher, None, None, None, None, **{**RULES, "chunk": 0}
        )
    assert seen.numbers == 4 * 3 * 500


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize("normalize_weight", [True, False])
def test_gradient_is_the_derivative(backend, device, normalize_weight):
    with serving(backend, device, torch.float64, OPERATION):
        features, weight, of_teacher, _ = problem(3, 2, 3, 4, 5, dtype=torch.float64, device=device)

        def loss(f, w):
            return prototype_cross_entropy(
                f, w, teacher_features=of_teacher, teacher_weight=weight, normalize_weight=normalize_weight, chunk=2,
                student_temperature=1.0, teacher_temperature=1.0,
            )  # fmt: skip

        inputs = [x.clone().requires_grad_() for x in (features, weight)]
        assert torch.autograd.gradcheck(loss, inputs, fast_mode=True)


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize(
    "needs",
    [(True, False), (False, True), *(pytest.param((x, x), marks=pytest.mark.exhaustive) for x in (True, False))],
)
def test_only_wanted_gradients_are_computed(backend, device, needs):
    with serving(backend, device, operation=OPERATION):
        inputs = [x.requires_grad_(need) for x, need in zip(problem(device=device)[:2], needs, strict=True)]
        of_teacher = problem(device=device)[2]
        rules = {**RULES, "student_gradient": needs[0], "weight_gradient": needs[1], "backend": backend}
        arguments = (*inputs, [], of_teacher, None, None, None, None)
        torch.library.opcheck(torch.ops.fastssl.prototype_cross_entropy.default, arguments, rules)
        torch.library.opcheck(
            torch.ops.fastssl.prototype_cross_entropy.default,
            (*inputs, [random(2, 7, 50, device=device)], None, None, None, None, torch.rand(7, device=device)),
            rules,
        )
        _, _, d_student, d_weight = torch.ops.fastssl.prototype_cross_entropy(*arguments, **rules)
        assert [d_student.numel() > 0, d_weight.numel() > 0] == list(needs)
        loss = prototype_cross_entropy(*inputs, teacher_features=of_teacher)
        with torch.no_grad():
            torch.testing.assert_close(loss.detach(), prototype_cross_entropy(*inputs, teacher_features=of_teacher))
        if any(needs):
            with pytest.raises(RuntimeError, match="a gradient that the call does not compute"):
                torch.ops.fastssl.prototype_cross_entropy(
                    *arguments, **{**rules, "student_gradient": False, "weight_gradient": False}
                )
            loss.backward()
        assert [x.grad is not None for x in inputs] == list(needs)


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_it_is_computed_like_a_linear_layer(backend, device, dtype):
    with serving(backend, device, dtype, OPERATION):
        features, weight, of_teacher, _ = problem(device=device)
        with torch.autocast(device, dtype=dtype):
            found = with_gradients(
                lambda f, w: prototype_cross_entropy(f, w, teacher_features=of_teacher), features, weight
            )
        expected = with_gradients(
            lambda f, w: prototype_cross_entropy(f.to(dtype), w, teacher_features=of_teacher.to(dtype)),
            features,
            weight,
        )
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        assert all(x.dtype == torch.float32 for x in found)


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_views_may_come_as_a_list_of_any_strides(backend, device):
    with serving(backend, device, operation=OPERATION):
        features, weight, of_teacher, _ = problem(device=device)
        expected = with_gradients(
            lambda f, w: prototype_cross_entropy(f, w, teacher_features=of_teacher), features, weight
        )
        strided = weight.T.contiguous().T
        for students, teachers in (
            (list, list(of_teacher)),
            (lambda f: [f[:2], f[2], f[3:]], [of_teacher[:1], of_teacher[1]]),
            (lambda f: f.transpose(0, 2).contiguous().transpose(0, 2), of_teacher.mT.contiguous().mT),
        ):

            def loss(f, w, students=students, teachers=teachers):
                return prototype_cross_entropy(students(f), w, teacher_features=teachers)

            torch.testing.assert_close(with_gradients(loss, features, strided), expected)


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_same_input_gives_the_same_bits_and_stays_as_it_was(backend, device):
    with serving(backend, device, operation=OPERATION):
        inputs = problem(images=40, prototypes=200, device=device)
        before = [x.clone() for x in inputs]
        runs = [operator(inputs) for _ in range(3)]
        assert all(torch.equal(a, b) for run in runs for a, b in zip(run, runs[0], strict=True))
        assert all(torch.equal(a, b) for a, b in zip(inputs, before, strict=True))
        features, weight = (x.requires_grad_() for x in inputs[:2])
        loss = prototype_cross_entropy(features, weight, teacher_features=inputs[2])
        first, second = (torch.autograd.grad(loss, (features, weight), retain_graph=True) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
        third = torch.autograd.grad(3 * loss, (features, weight))
        torch.testing.assert_close([gradient / 3 for gradient in third], list(first))


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_second_derivatives_raise(backend, device):
    with serving(backend, device, operation=OPERATION):
        features, weight, of_teacher, _ = problem(device=device)
        features.requires_grad_()
        loss = prototype_cross_entropy(features, weight, teacher_features=of_teacher)
        (gradient,) = torch.autograd.grad(loss, features, create_graph=True)
        with pytest.raises(RuntimeError, match="second derivatives"):
            gradient.sum().backward()


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_compiles_without_a_graph_break(backend, device):
    with serving(backend, device, operation=OPERATION):
        features, weight, of_teacher, _ = problem(device=device)

        def loss(f, w):
            return prototype_cross_entropy(f, w, teacher_features=of_teacher, return_column_sum=True)

        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(with_gradients(compiled, features, weight), with_gradients(loss, features, weight))


STUDENT, WEIGHT, TEACHER = torch.zeros(3, 4, 5), torch.zeros(6, 5), torch.zeros(2, 4, 6)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"student": torch.zeros(4, 5)}, ValueError, r"student must have shape \[views, B, D\] or be a list"),
        ({"student": [torch.zeros(4, 5), torch.zeros(3, 5)]}, ValueError, "student must have the same B and D"),
        ({"student": torch.zeros(3, 4, 5, dtype=torch.int64)}, TypeError, "student must have one of the dtypes"),
        ({"weight": torch.zeros(6)}, ValueError, r"weight must have shape \[K, D\], got \(6,\)"),
        ({"weight": torch.zeros(6, 4)}, ValueError, r"student and weight must have the same D"),
        ({"weight": torch.zeros(6, 5, dtype=torch.float64)}, ValueError, "must both be float64 or neither"),
        ({"teacher": None}, ValueError, "either teacher .* got neither"),
        ({"teacher_features": torch.zeros(2, 4, 5)}, ValueError, "got both"),
        ({"teacher": torch.zeros(2, 4, 7)}, ValueError, "teacher must have K = 6 logits"),
        ({"teacher": torch.zeros(2, 3, 6)}, ValueError, "must have the student's B = 4"),
        ({"teacher_weight": WEIGHT}, ValueError, "teacher_weight is only for teacher_features"),
        ({"teacher": None, "teacher_features": torch.zeros(2, 4, 3)}, ValueError, r"must have shape \(6, 3\), got"),
        ({"teacher": torch.zeros(1, 4, 6), "student": STUDENT[:1]}, ValueError, "at least one pair of different views"),
        ({"column_potential": torch.zeros(5)}, ValueError, r"column_potential must be .* \(6,\) or \(2, 6\)"),
        ({"row_potential": torch.zeros(4)}, ValueError, r"row_potential must be .* \(2, 4\)"),
        ({"image_weight": torch.zeros(3)}, ValueError, r"image_weight must be .* \(4,\)"),
        ({"image_weight": [1.0]}, TypeError, "image_weight must be a dense tensor"),
        ({"student_temperature": 0}, ValueError, "student_temperature must be finite and above 0"),
        ({"reduction": "none"}, ValueError, "reduction must be one of 'mean', 'sum', got 'none'"),
        ({"chunk": 0}, ValueError, "chunk must be None or a number of images, at least 1, got 0"),
        ({"chunk": 2.0}, ValueError, "chunk must be None or a number of images"),
    ],
)
def test_bad_input_is_named(arguments, error, message):
    arguments = {"student": STUDENT, "weight": WEIGHT, "teacher": TEACHER, **arguments}
    with pytest.raises(error, match=message):
        prototype_cross_entropy(**arguments)
