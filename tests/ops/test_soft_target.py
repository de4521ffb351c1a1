"""The soft-target cross-entropy operators, on every backend that this machine has, against float64."""

from __future__ import annotations

import itertools

import pytest
import torch
from harness import BACKENDS, DTYPES, assert_as_accurate_as_eager, poisoned_outputs, serving

import fastssl
from fastssl import functional
from fastssl.ops.soft_target import reference

RULES = {"student_scale": 10.0, "teacher_scale": 25.0, "skip_same_view": True}


def serve(backend, device, dtype=torch.float32):
    return serving(backend, device, dtype, "soft_target_cross_entropy")


def random(*shape, dtype=torch.float32, device="cpu", seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype).to(device)


def accumulator(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def problem(students, teachers, images, prototypes, dtype=torch.float32, device="cpu", *, potentials=1, rows=False,
            weighted=True):  # fmt: skip
    """Student, teacher, column potentials, row potentials, weights; image 1 has weight 0 when there are several."""
    wide = accumulator(dtype)
    student = random(students, images, prototypes, dtype=dtype, device=device, seed=1)
    teacher = random(teachers, images, prototypes, dtype=dtype, device=device, seed=2) * 0.3
    column = row = weight = None
    if potentials:
        shape = (prototypes,) if potentials == 1 else (teachers, prototypes)
        column = random(*shape, dtype=wide, device=device, seed=3)
    if rows:  # about what normalises the teacher
        exponents = RULES["teacher_scale"] * teacher.double()
        if column is not None:
            exponents = exponents - (column if column.ndim == 1 else column[:, None])
        row = exponents.logsumexp(2).to(wide) + 0.3 * random(teachers, images, dtype=wide, device=device, seed=4)
    if weighted:
        weight = random(images, dtype=wide, device=device, seed=5).abs() + 0.1
        if images > 1:
            weight[1] = 0
    return [student], [teacher], column, row, weight


def forward(inputs, column_sum=True, **rules):
    return torch.ops.fastssl.soft_target_cross_entropy(
        *inputs, **{**RULES, **rules}, column_sum=column_sum, backend=fastssl.backends.forced()
    )


def gradient(inputs, student_lse, teacher_lse, d_loss, **rules):
    return torch.ops.fastssl.soft_target_cross_entropy_grad(
        *inputs, student_lse, teacher_lse, d_loss, **{**RULES, **rules}, backend=fastssl.backends.forced()
    )


def step(inputs, factor=0.7, **rules):
    return torch.ops.fastssl.soft_target_step(
        *inputs, **{**RULES, **rules}, factor=factor, column_sum=True, backend=fastssl.backends.forced()
    )


def wide(inputs):
    return tuple(
        [x.double() for x in value] if isinstance(value, list) else None if value is None else value.double()
        for value in inputs
    )


def terms(inputs, rules):
    """Sums of absolute terms, from float64 inputs: of the losses [B], of log-sums [S, B], [T, B], and of the gradient
    for d_loss = 1, [S, B, K].

    An exponential inherits the rounding of its argument, relative to the term.
    """
    student, teacher, column, row, weight = inputs
    a, c = rules["student_scale"], rules["teacher_scale"]
    x, y = a * torch.cat(student), c * torch.cat(teacher)
    z = y if column is None else y - (column if column.ndim == 1 else column[:, None])
    size = y.abs() if column is None else y.abs() + (column if column.ndim == 1 else column[:, None]).abs()
    lse_x, lse_z = x.logsumexp(2), z.logsumexp(2)
    shift = lse_z if row is None else row
    p = (z - shift[:, :, None]).exp() * (1 + size + shift.abs()[:, :, None])
    taken = reference._taken(len(z), len(x), rules["skip_same_view"], x.device).double()
    q = torch.einsum("ts,tbk->sbk", taken, p)
    softmax = (x - lse_x[:, :, None]).exp()
    w = torch.ones_like(lse_x[0]) if weight is None else weight
    mass = torch.einsum("ts,tb->sb", taken, p.sum(2))[:, :, None]
    loss = w * (q * (x.abs() + lse_x.abs()[:, :, None])).sum((0, 2))
    of_gradient = a * w[:, None] * (mass * softmax * (1 + x.abs() + lse_x.abs()[:, :, None]) + q)
    reached = (softmax * x.abs()).sum(2) + lse_x.abs() + 1
    return loss, reached, (p * size).sum(2) + lse_z.abs() + 1, of_gradient


def check(inputs, *, kernel_sees=None, **rules):
    """All three operators against the reference in float64, and eager PyTorch as the yardstick.

    ``kernel_sees`` changes the inputs for the kernel alone: a test that the yardstick notices.
    """
    rules = {**RULES, **rules}
    seen = inputs if kernel_sees is None else kernel_sees(*inputs)
    with poisoned_outputs():
        outside = forward(seen, **rules)
    eager = reference.soft_target_cross_entropy(*inputs, column_sum=True, **rules)
    true = wide(inputs)
    truth = reference.soft_target_cross_entropy(*true, column_sum=True, **rules)
    of_loss, of_student, of_teacher, of_gradient = terms(true, rules)
    of_sum = torch.cat(true[1]).abs().sum((0, 1))
    names = "loss", "student's log-sums", "teacher's log-sums", "column sums"
    for name, a, e, t, s in zip(names, outside, eager, truth, (of_loss, of_student, of_teacher, of_sum), strict=True):
        assert_as_accurate_as_eager(
            a, e, t, s, name, refuses_zeros=name == "loss" and bool(t.abs().max() > s.max() / 9)
        )

    d_loss = random(outside[0].shape[0], dtype=outside[0].dtype, device=outside[0].device, seed=9)
    log_sums = tuple(lse.to(outside[0].dtype) for lse in truth[1:3])
    with poisoned_outputs():
        actual = gradient(seen, *log_sums, d_loss, **rules)
    eager = reference.soft_target_cross_entropy_grad(*inputs, *log_sums, d_loss, **rules)
    truth = reference.soft_target_cross_entropy_grad(*true, *(t.double() for t in (*log_sums, d_loss)), **rules)
    bound = d_loss.double().abs()[:, None] * of_gradient
    assert_as_accurate_as_eager(torch.cat(actual), torch.cat(eager), torch.cat(truth), bound, "gradient")

    if inputs[0][0].dtype == torch.float16:
        return
    with poisoned_outputs():
        loss, total, actual = step(seen, **rules)
    eager = reference.soft_target_step(*inputs, factor=0.7, column_sum=True, **rules)
    truth = reference.soft_target_step(*true, factor=0.7, column_sum=True, **rules)
    at_once = zip((loss, total), eager[:2], truth[:2], (0.7 * of_loss.sum(), of_sum), strict=True)
    for name, (a, e, t, s) in zip(("loss at once", "column sums at once"), at_once, strict=True):
        assert_as_accurate_as_eager(*(v.reshape(-1) for v in (a, e, t, s)), name, refuses_zeros=False)
    assert_as_accurate_as_eager(
        torch.cat(actual), torch.cat(eager[2]), torch.cat(truth[2]), 0.7 * of_gradient, "gradient at once"
    )


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
@pytest.mark.parametrize(
    ("students", "teachers", "images", "prototypes"),
    [(2, 1, 1, 2), (2, 2, 3, 7), (4, 2, 5, 33), (10, 2, 3, 1000), (5, 3, 2, 4100), (2, 4, 35, 48)],
)
def test_losses_and_gradients_match_float64(backend, device, dtype, students, teachers, images, prototypes):
    with serve(backend, device, dtype):
        check(problem(students, teachers, images, prototypes, dtype, device))


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize(
    ("skip_same_view", "potentials", "rows", "weighted"),
    list(itertools.product((True, False), (0, 1, 2), (False, True), (False, True))),
)
def test_every_rule_matches_float64(backend, device, skip_same_view, potentials, rows, weighted):
    with serve(backend, device):
        for students, teachers in ((4, 2), (3, 3), (3, 1)):
            inputs = problem(students, teachers, 3, 101, device=device, potentials=potentials, rows=rows,
                             weighted=weighted)  # fmt: skip
            check(inputs, skip_same_view=skip_same_view)


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize(
    "wrong",
    [
        lambda x, y, v, u, w: ([x[0].clone().index_fill_(2, torch.tensor([100]), 0.0)], y, v, u, w),
        lambda x, y, v, u, w: (x, y, None, u, w),
        lambda x, y, v, u, w: (x, y, v, u, None),
        lambda x, y, v, u, w: (x, [y[0].flip(0)], v, u, w),
        lambda x, y, v, u, w: ([x[0].flip(0)], y, v, u, w),
        lambda x, y, v, u, w: (x, [y[0].roll(1, 1)], v, u, w),
    ],
    ids=["last prototype", "potentials", "weights", "other teacher view", "other student view", "other image"],
)
def test_the_yardstick_notices_what_a_kernel_may_skip(backend, device, wrong):
    with serve(backend, device):
        inputs = problem(4, 2, 3, 101, device=device)
        check(inputs)
        with pytest.raises(AssertionError):
            check(inputs, kernel_sees=wrong)


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_student_and_teacher_may_have_different_dtypes(backend, device, dtype):
    other = torch.float16 if dtype == torch.float32 else torch.float32
    with serve(backend, device, dtype):
        student, _, *rest = problem(3, 2, 4, 300, dtype, device)
        _, teacher, *_ = problem(3, 2, 4, 300, other, device)
        check((student, teacher, *rest))


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize("shape", ["offset up", "offset down", "rising", "falling", "one peak", "wide"])
def test_logits_of_any_size(backend, device, shape):
    prototypes = 5000
    ramp = torch.linspace(0, 3000, prototypes)
    peak = torch.zeros(prototypes)
    peak[4321] = 500
    added = {"offset up": 1e4, "offset down": -1e4, "rising": ramp, "falling": -ramp, "one peak": peak, "wide": 0.0}
    with serve(backend, device):
        student, teacher, column, row, weight = problem(3, 2, 3, prototypes, device=device)
        added = torch.as_tensor(added[shape]).to(device)
        student, teacher = (
            [student[0] + added],
            [teacher[0] + added.flip(0) if shape == "one peak" else teacher[0] + added],
        )
        if shape == "wide":
            student, teacher = [100 * student[0]], [100 * teacher[0]]
        check((student, teacher, column, row, weight))


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_logits_of_minus_infinity_have_no_probability(backend, device):
    with serve(backend, device):
        student, teacher, *rest = problem(2, 1, 2, 5000, device=device, weighted=False)
        finite = [student[0][:, :, 4096:].contiguous()], [teacher[0][:, :, 4096:].contiguous()]
        teacher[0][:, :, :4096] = -torch.inf  # whole chunks, the first ones
        student[0][:, :, :4096] = -torch.inf
        column = rest[0]
        _, student_lse, teacher_lse, _ = forward((student, teacher, *rest), column_sum=False)
        _, expected, of_teacher, _ = forward((*finite, column[4096:].contiguous(), *rest[1:]), column_sum=False)
        torch.testing.assert_close(student_lse, expected)
        torch.testing.assert_close(teacher_lse, of_teacher)
        (actual,) = gradient((student, teacher, *rest), student_lse, teacher_lse, torch.ones(2, device=device))
        assert (actual[:, :, :4096] == 0).all() and actual.isfinite().all()


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_images_of_weight_zero_are_not_read(backend, device, dtype):
    with serve(backend, device, dtype):
        inputs = problem(4, 2, 6, 130, dtype, device)
        without = [i for i in range(6) if i != 1]
        student, teacher, column, _, weight = inputs
        others = (
            [student[0][:, without].contiguous()],
            [teacher[0][:, without].contiguous()],
            column,
            None,
            weight[without],
        )
        for stack in (*student, *teacher):
            stack[:, 1] = torch.nan
        loss, student_lse, teacher_lse, total = forward(inputs)
        expected = forward(others)
        assert loss[1] == 0 and torch.equal(loss[without], expected[0])
        assert (student_lse[:, 1] == 0).all() and (teacher_lse[:, 1] == 0).all()
        torch.testing.assert_close(total, expected[3])
        d_loss = torch.full_like(loss, 0.5)
        (actual,) = gradient(inputs, student_lse, teacher_lse, d_loss)
        (wanted,) = gradient(others, *expected[1:3], d_loss[without])
        assert (actual[:, 1] == 0).all() and torch.equal(actual[:, without], wanted)
        if dtype != torch.float16:
            loss, total, (actual,) = step(inputs)
            assert loss.isfinite() and total.isfinite().all()
            assert (actual[:, 1] == 0).all() and actual.isfinite().all()


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_in_nan_out(backend, device, bad):
    with serve(backend, device):
        for which, place in ((0, (2, 1, 77)), (1, (0, 1, 77))):
            inputs = problem(4, 2, 3, 4200, device=device, weighted=False)
            inputs[which][0][place] = bad
            before = inputs[which][0].clone()
            loss, student_lse, teacher_lse, _ = forward(inputs)
            assert loss.isnan().tolist() == [False, True, False]
            (actual,) = gradient(inputs, student_lse, teacher_lse, torch.ones_like(loss))
            at_once, _, (same,) = step(inputs)
            assert at_once.isnan()
            for result in (actual, same):
                # Students that are compared with the bad row, or are the bad row.
                rows = [2] if which == 0 else [1, 2, 3]
                broken = result[rows, 1].isnan()
                assert (broken.all() if bad != bad else broken.any(1).all()) and result[:, [0, 2]].isfinite().all()
            assert torch.equal(inputs[which][0].nan_to_num(7.0), before.nan_to_num(7.0))


def views_of(base):
    """The same views in every form that is taken without copying, and some that are copied."""
    views, images, prototypes = base.shape
    flat = base.reshape(views * images, prototypes)
    around = base.new_full((views, images + 2, prototypes + 11), float("nan"))
    around[:, 1:-1, 3:-8] = base
    apart = [around[v, 1:-1, 3:-8] for v in range(views)]
    return {
        "list": list(base.clone().unbind(0)),
        "chunks": list(flat.chunk(views)),
        "stacks": [base[:1].clone(), base[1:].clone()],
        "guard band": around[:, 1:-1, 3:-8],
        "list in guard bands": apart,
        "images first": base.transpose(0, 1).contiguous().transpose(0, 1),
        "prototypes first": base.permute(2, 0, 1).contiguous().permute(1, 2, 0),
    }


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_any_form_of_the_views_gives_the_same_bits(backend, device, dtype):
    with serve(backend, device, dtype):
        student, teacher = random(3, 4, 70, dtype=dtype, device=device), random(2, 4, 70, dtype=dtype, device=device)

        def run(x, y):
            as_list = isinstance(x, list)
            leaves = [v.detach().requires_grad_() for v in x] if as_list else x.detach().requires_grad_()
            loss, total = functional.soft_target_cross_entropy(leaves, y, return_column_sum=True)
            loss.backward()
            grads = [leaf.grad for leaf in leaves] if as_list else [leaves.grad]
            return loss.detach(), total, torch.cat([g if g.ndim == 3 else g[None] for g in grads])

        expected = run(student, teacher)
        others = views_of(teacher)
        for name, form in views_of(student).items():
            for a, b in zip(run(form, others[name]), expected, strict=True):
                assert torch.equal(a, b), name


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_same_input_gives_the_same_bits(backend, device, dtype):
    with serve(backend, device, dtype):
        inputs = problem(4, 2, 37, 3000, dtype, device)
        runs = []
        for _ in range(3):
            loss, student_lse, teacher_lse, total = forward(inputs)
            grads = gradient(inputs, student_lse, teacher_lse, loss)
            at_once, sums, same = step(inputs)
            runs.append((loss, student_lse, teacher_lse, total, *grads, at_once, sums, *same))
        assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(runs[0], run, strict=True))


def test_any_number_of_threads_gives_the_same_bits():
    with serve("cpp", "cpu"):
        inputs = problem(4, 2, 37, 3000)
        before = torch.get_num_threads()
        try:
            runs = []
            for threads in (1, 2, 3, 7):
                torch.set_num_threads(threads)
                loss, total, grads = step(inputs)
                runs.append((*forward(inputs), loss, total, *grads))
        finally:
            torch.set_num_threads(before)
        assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(runs[0], run, strict=True))


def test_memory_beyond_the_gradient_is_a_few_rows():
    with serve("cpp", "cpu"):
        extension = fastssl._extension.load()
        prototypes = 1 << 14
        inputs = problem(10, 2, 64, prototypes)
        extension.release_workspaces()
        step(inputs)
        rows = extension.info()["workspace_bytes"] / (4 * prototypes)
        assert 0 < rows < 16 + 4 * torch.get_num_threads(), "sums of 16 groups of images, and per thread the teachers"
        assert rows < 64 * 12 / 10


@pytest.mark.parametrize("backend", ["chunked", "cpp"])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_gradients_pass_gradcheck(backend, reduction):
    with serve(backend, "cpu", torch.float64):
        student, teacher, column, row, weight = problem(3, 2, 3, 9, torch.float64, rows=True)

        def loss(*views):
            return functional.soft_target_cross_entropy(
                views, teacher, column_potential=column, row_potential=row, weight=weight, reduction=reduction,
                student_temperature=0.5, teacher_temperature=0.5,
            )  # fmt: skip

        assert torch.autograd.gradcheck(loss, tuple(view.requires_grad_() for view in student[0].unbind(0)))


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_operators_pass_opcheck(backend, device, dtype):
    with serve(backend, device, dtype):
        student, teacher, *rest = problem(3, 2, 4, 20, dtype, device, rows=True)
        views = [student[0][:1].clone().requires_grad_(), student[0][1:].clone().requires_grad_()]
        log_sums = torch.ones(3, 4, device=device), torch.ones(2, 4, device=device)
        names = torch.ops.fastssl
        for operator, arguments, keywords in (
            (names.soft_target_cross_entropy, (), {"column_sum": True}),
            (names.soft_target_step, (), {"column_sum": True, "factor": 0.3}),
            (names.soft_target_cross_entropy_grad, (*log_sums, torch.ones(4, device=device)), {}),
        ):
            inputs = [v.detach() for v in views] if arguments else views
            torch.library.opcheck(
                operator.default, (inputs, teacher, *rest, *arguments), {**RULES, **keywords, "backend": backend}
            )


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_second_backward_pass_and_accumulation_leave_everything_as_it_was(backend, device, inplace, dtype):
    with serve(backend, device, dtype):
        leaf = random(3, 4, 50, dtype=dtype, device=device).requires_grad_()
        teacher = random(2, 4, 50, dtype=dtype, device=device)
        kept, kept_teacher = leaf.detach().clone(), teacher.clone()
        once = torch.autograd.grad(functional.soft_target_cross_entropy(leaf * 1, teacher), leaf)[0]
        loss = functional.soft_target_cross_entropy(leaf * 1, teacher, inplace=inplace)
        loss.backward(retain_graph=True)
        assert torch.equal(leaf.grad, once)
        (4 * loss).backward()
        torch.testing.assert_close(leaf.grad.float(), 5 * once.float(), rtol=64 * torch.finfo(dtype).eps, atol=1e-6)
        assert torch.equal(leaf.detach(), kept) and torch.equal(teacher, kept_teacher)
        with pytest.raises(RuntimeError, match="second time"):
            loss.backward()


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_in_place_the_gradient_is_the_same_and_lies_where_the_logits_lay(backend, device, dtype, reduction):
    with serve(backend, device, dtype):
        leaf = random(3, 4, 50, dtype=dtype, device=device).requires_grad_()
        teacher, weight = (
            random(2, 4, 50, dtype=dtype, device=device),
            torch.tensor([1.0, 0.0, 2.0, 1.0], device=device),
        )
        arguments = {"weight": weight, "reduction": reduction, "return_column_sum": True}
        loss, total = functional.soft_target_cross_entropy(leaf, teacher, **arguments)
        loss.sum().backward()
        for form in (
            lambda x: x,
            lambda x: list(x.unbind(0)),
            lambda x: x.permute(2, 0, 1).contiguous().permute(1, 2, 0),
        ):
            logits = form(leaf * 1)
            received = []
            for view in logits if isinstance(logits, list) else [logits]:
                view.register_hook(received.append)
            copy = leaf.detach().requires_grad_()
            same, same_total = functional.soft_target_cross_entropy(logits, teacher, inplace=True, **arguments)
            (gradient,) = torch.autograd.grad(same.sum(), leaf)
            torch.testing.assert_close((same, same_total), (loss, total), rtol=1e-6, atol=1e-6)
            torch.testing.assert_close(gradient, leaf.grad, rtol=64 * torch.finfo(dtype).eps, atol=1e-6)
            places = [view.data_ptr() for view in (logits if isinstance(logits, list) else [logits])]
            assert [g.data_ptr() for g in received] == places
            assert torch.equal(copy, leaf)


def test_in_place_is_refused_where_it_would_destroy_something():
    teacher = random(2, 4, 50)
    leaf = random(3, 4, 50).requires_grad_()
    with pytest.raises(ValueError, match=r"inplace=True .* must not be leaves"):
        functional.soft_target_cross_entropy(leaf, teacher, inplace=True)
    view = leaf[0] * 1
    with pytest.raises(ValueError, match="no two of them may share memory"):
        functional.soft_target_cross_entropy([view, view], teacher, inplace=True)
    with pytest.raises(ValueError, match="no two of them may share memory"):
        functional.soft_target_cross_entropy((leaf[:1] * 1).expand(3, 4, 50), teacher, inplace=True)
    logits = leaf * 1
    other = logits.exp().sum() + logits.square().sum()  # has saved the logits
    functional.soft_target_cross_entropy(logits, teacher, inplace=True).backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        other.backward()
    without = functional.soft_target_cross_entropy(
        leaf.detach(), teacher, inplace=True
    )  # no gradient: nothing is written
    assert torch.equal(without, functional.soft_target_cross_entropy(leaf.detach(), teacher))


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize("inplace", [False, True])
def test_compiled_equals_eager(backend, device, inplace):
    with serve(backend, device):
        leaf = random(3, 4, 50, device=device).requires_grad_()
        teacher, column = random(2, 4, 50, device=device), random(50, device=device, seed=3)

        def loss(x, y, v):
            views = list((x * 1).unbind(0))
            value, total = functional.soft_target_cross_entropy(
                views, y, column_potential=v, inplace=inplace, return_column_sum=True
            )
            return 3 * value, total

        expected, expected_total = loss(leaf, teacher, column)
        (wanted,) = torch.autograd.grad(expected, leaf)
        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
        value, total = compiled(leaf, teacher, column)
        (actual,) = torch.autograd.grad(value, leaf)
        torch.testing.assert_close((value, total), (expected, expected_total), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(actual, wanted, rtol=1e-5, atol=1e-7)


def test_second_derivatives_and_vmap_raise():
    leaf, teacher = random(3, 4, 50).requires_grad_(), random(2, 4, 50)
    for inplace, reduction in ((False, "mean"), (False, "none"), (True, "mean"), (True, "none")):
        loss = functional.soft_target_cross_entropy(leaf * 1, teacher, inplace=inplace, reduction=reduction).sum()
        with pytest.raises(RuntimeError, match="second derivatives of the fused losses are not implemented"):
            (gradient,) = torch.autograd.grad(loss, leaf, create_graph=True)
            gradient.square().sum().backward()
    with pytest.raises(NotImplementedError, match=r"does not support torch\.vmap"):
        torch.vmap(lambda x: functional.soft_target_cross_entropy(x, teacher))(torch.randn(2, 3, 4, 50))


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_what_no_pair_needs_has_no_loss_and_no_gradient(backend, device):
    with serve(backend, device):
        leaf = random(2, 3, 40, device=device).requires_grad_()
        teacher = random(1, 3, 40, device=device)
        loss = functional.soft_target_cross_entropy(leaf, teacher, reduction="sum")
        loss.backward()
        alone = functional.soft_target_cross_entropy(leaf[1:], teacher, reduction="sum", skip_same_view=False)
        assert torch.equal(loss, alone)
        assert (leaf.grad[0] == 0).all() and (leaf.grad[1] != 0).any()


def test_gradient_in_float16_survives_a_loss_scaler():
    leaf = (random(10, 4, 6000) * 0.1).half().requires_grad_()
    teacher, weight = (random(2, 4, 6000) * 0.1).half(), torch.full((4,), 1e-4)
    functional.soft_target_cross_entropy(leaf, teacher, weight=weight).mul(2.0**14).backward()
    exact = leaf.detach().double().requires_grad_()
    functional.soft_target_cross_entropy(exact, teacher.double(), weight=weight).mul(2.0**14).backward()
    error = (leaf.grad.double() - exact.grad).abs().max() / exact.grad.abs().max()
    assert error < 2e-3 and (leaf.grad != 0).float().mean() > 0.5
    assert (exact.grad / 2.0**14).half().count_nonzero() < 0.2 * leaf.numel(), "without a scaler most would vanish"


def test_masked_tokens_are_the_mean_over_images_of_the_mean_over_tokens():
    student, teacher = random(3, 5, 40, dtype=torch.float64, seed=1), random(3, 5, 40, dtype=torch.float64, seed=2)
    mask = torch.tensor([[1, 0, 1, 1, 0], [0, 0, 0, 0, 0], [0, 1, 0, 0, 0]], dtype=torch.bool)
    center = random(40, dtype=torch.float64, seed=3)

    def formula(x):
        pairs = -((((teacher - center) / 0.07).softmax(2)) * (x / 0.1).log_softmax(2)).sum(2)
        return ((pairs * mask).sum(1) / mask.sum(1).clamp(min=1)).mean()

    expected = student.clone().requires_grad_()
    formula(expected).backward()
    arguments = {"teacher_temperature": 0.07, "column_potential": center / 0.07, "return_column_sum": True}
    everything = student.clone().requires_grad_()
    loss, total = functional.masked_soft_target_cross_entropy(everything, teacher, mask, **arguments)
    loss.backward()
    torch.testing.assert_close(loss, formula(student))
    torch.testing.assert_close(everything.grad, expected.grad)
    torch.testing.assert_close(total, teacher[mask].sum(0))

    padding = torch.full((2, 40), torch.nan, dtype=torch.float64)
    for beyond in (0, 2):
        gathered = torch.cat([student[mask], padding[:beyond]]).requires_grad_()
        others = torch.cat([teacher[mask], padding[:beyond]])
        loss, total = functional.masked_soft_target_cross_entropy(gathered, others, mask.view(3, 1, 5), **arguments)
        loss.backward()
        torch.testing.assert_close(loss, formula(student))
        torch.testing.assert_close(gathered.grad[:4], expected.grad[mask])
        assert (gathered.grad[4:] == 0).all()
        torch.testing.assert_close(total, teacher[mask].sum(0))
    with pytest.raises(ValueError, match="student must have a row per masked token, 4, got 3"):
        functional.masked_soft_target_cross_entropy(student[mask][:3], teacher[mask][:3], mask)


X, Y = torch.zeros(3, 4, 5), torch.zeros(2, 4, 5)


@pytest.mark.parametrize(
    ("student", "teacher", "arguments", "error", "message"),
    [
        (X[0], Y, {}, ValueError, r"student must have shape \[views, B, K\] or be a list of \[B, K\], got \(4, 5\)"),
        ("x", Y, {}, TypeError, "student must be a tensor .* got str"),
        ([], Y, {}, ValueError, "student must have at least one view, got none"),
        ([X[0], 3], Y, {}, TypeError, r"student must be a tensor of shape \[B, K\], got int"),
        (X, Y.long(), {}, TypeError, "teacher must have one of the dtypes .* got torch.int64"),
        (X, Y[:, :3], {}, ValueError, r"same B and K, got \(4, 5\) and, in teacher, \(3, 5\)"),
        ([X[0], X[1].double()], Y, {}, ValueError, "student and student must have the same dtype"),
        (X, Y.double(), {}, ValueError, "both be float64 or neither"),
        (X.to_sparse(), Y, {}, TypeError, "student must be a dense tensor"),
        (X, Y, {"student_temperature": 0}, ValueError, "student_temperature must be finite and above 0, got 0"),
        (X, Y, {"teacher_temperature": "1"}, TypeError, "teacher_temperature must be a number, got str"),
        (X, Y, {"teacher_temperature": 1e-320}, ValueError, "1 / teacher_temperature must be finite"),
        (X, Y, {"column_potential": torch.zeros(4)}, ValueError, r"column_potential must be .* \(5,\) or \(2, 5\)"),
        (X, Y, {"column_potential": 3.0}, TypeError, "column_potential must be a dense tensor .* got float"),
        (X, Y, {"row_potential": torch.zeros(4)}, ValueError, r"row_potential must be .* of shape \(2, 4\)"),
        (X, Y, {"weight": torch.zeros(5)}, ValueError, r"weight must be .* of shape \(4,\)"),
        (X, Y, {"reduction": "avg"}, ValueError, "reduction must be one of 'mean', 'sum', 'none', got 'avg'"),
        (X[:1], Y[:1], {}, ValueError, "at least one pair of different views, got 1 and 1 views"),
        (X[:, :0], Y[:, :0], {}, ValueError, "student must not be empty"),
    ],
)  # fmt: skip
def test_bad_input_is_named(student, teacher, arguments, error, message):
    with pytest.raises(error, match=message):
        functional.soft_target_cross_entropy(student, teacher, **arguments)


def test_bad_input_of_the_masked_form_is_named():
    mask = torch.ones(3, 4, dtype=torch.bool)
    for arguments, error, message in (
        ((X, X, mask.long()), TypeError, "mask must be a bool tensor .* got torch.int64"),
        ((X, X, mask[0]), ValueError, r"mask must have shape \[B, L\] or \[B, H, W\], got \(4,\)"),
        ((X, X, mask[:2]), ValueError, r"student must have the mask's tokens, \[2, 4, K\], got \(3, 4, 5\)"),
        ((X, Y, mask), ValueError, "student and teacher must have the same shape"),
        ((X.tolist(), X, mask), TypeError, "student must be a tensor"),
    ):
        with pytest.raises(error, match=message):
            functional.masked_soft_target_cross_entropy(*arguments)
