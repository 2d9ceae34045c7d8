"""linear_cross_entropy against float64 written out: both its ways, its rules one by one, the memory that it saves."""

import importlib
import json
import math

import pytest
import torch
import torch.nn.functional as F

module = importlib.import_module("xtoolkit.kernels.linear_cross_entropy")
linear_cross_entropy = module.linear_cross_entropy
WAYS = {"plain": 1 << 40, "parts": -1}
UPSTREAM = -2.5


@pytest.fixture(params=WAYS)
def way(request, monkeypatch):
    """Both ways, whatever the size; chunks of six words."""
    monkeypatch.setattr(module, "PLAIN_BYTES", WAYS[request.param])
    monkeypatch.setattr(module, "WORDS", 6)
    return request.param


@pytest.fixture
def parts(monkeypatch):
    monkeypatch.setattr(module, "PLAIN_BYTES", -1)
    monkeypatch.setattr(module, "WORDS", 6)


def inputs(rows=7, width=5, words=23, dtype=torch.float64, bias=True, scale=1.0, seed=0):
    g = torch.Generator().manual_seed(seed)
    draw = lambda *shape: (scale * torch.randn(*shape, generator=g, dtype=torch.float64)).to(dtype).requires_grad_()
    labels = torch.randint(0, words, (rows,), generator=g)
    return draw(rows, width), draw(words, width), draw(words) if bias else None, labels


def exact(hidden, weight, bias, labels):
    """Value and gradients by formula in float64: p - onehot, no autograd."""
    h, w = hidden.detach().double(), weight.detach().double()
    scores = h @ w.T + (0 if bias is None else bias.detach().double())
    top = scores.max(1, keepdim=True).values
    p = torch.exp(scores - top)
    total = p.sum(1, keepdim=True)
    loss = (top + total.log() - scores.gather(1, labels[:, None])).mean()
    d = UPSTREAM * (p / total - F.one_hot(labels, len(w))) / len(h)
    return loss, (d @ w, d.T @ h) + (() if bias is None else (d.sum(0),))


def run(*args):
    loss = linear_cross_entropy(*args)
    return loss, torch.autograd.grad(loss, [a for a in args if a is not None and a.requires_grad],
                                     torch.tensor(UPSTREAM, dtype=loss.dtype))


def error(got, want):
    return ((got.double() - want).norm() / want.norm().clamp(min=1e-300)).item()


def test_by_hand(way):
    # Scores ln 1, ln 2, ln 5 and 0, 0, 0: probabilities 1/8, 2/8, 5/8 and a third each.
    hidden = torch.tensor([[1.0], [0.0]], requires_grad=True)
    weight = torch.tensor([[1.0], [2.0], [5.0]]).log()
    loss, (gradient,) = run(hidden, weight, None, torch.tensor([2, 0]))
    assert loss.item() == pytest.approx((math.log(8 / 5) + math.log(3)) / 2)
    want = (math.log(2) * 2 / 8 + math.log(5) * 5 / 8 - math.log(5)) / 2 * UPSTREAM
    assert gradient[0].item() == pytest.approx(want)


@pytest.mark.parametrize("rows", [1, 2, 33])
@pytest.mark.parametrize("width", [1, 17])
@pytest.mark.parametrize("words", [1, 5, 6, 7, 12, 97])
@pytest.mark.parametrize("bias", [True, False])
def test_value_and_gradients(way, rows, width, words, bias):
    args = inputs(rows, width, words, bias=bias)
    want, gradients = exact(*args)
    got, found = run(*args)
    torch.testing.assert_close(got, want, rtol=1e-13, atol=1e-14)
    for g, w in zip(found, gradients, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-12, atol=1e-14)


def test_gradcheck(way):
    hidden, weight, bias, labels = inputs(4, 3, 15)
    assert torch.autograd.gradcheck(lambda *a: linear_cross_entropy(*a, labels), (hidden, weight, bias))
    assert torch.autograd.gradcheck(lambda *a: linear_cross_entropy(*a, None, labels), (hidden, weight))


@pytest.mark.parametrize("dtype, loss_tolerance, tolerance", [
    (torch.float32, 1e-6, 1e-6), (torch.bfloat16, 4e-3, 1e-2), (torch.float16, 5e-4, 1.5e-3)])
def test_types(way, dtype, loss_tolerance, tolerance):
    args = inputs(40, 32, 300, dtype=dtype, scale=0.5)
    want, gradients = exact(*args)
    got, found = run(*args)
    assert got.dtype == torch.float32 and error(got, want) <= loss_tolerance
    for g, w, a in zip(found, gradients, args):
        assert g.dtype == a.dtype and error(g, w) <= tolerance


@pytest.mark.parametrize("hidden_dtype", [torch.float32, torch.bfloat16])
def test_autocast_as_a_linear_layer_under_autocast(parts, hidden_dtype):
    hidden, weight, bias, labels = inputs(40, 32, 300, dtype=torch.float32, scale=0.5)
    hidden = hidden.detach().to(hidden_dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_cross_entropy(hidden, weight, bias, labels)
        plain = F.cross_entropy(F.linear(hidden, weight, bias).float(), labels)
    assert loss.dtype == torch.float32 and error(loss, plain.double()) <= 1e-6
    found, want = torch.autograd.grad(loss, (hidden, weight, bias)), torch.autograd.grad(plain, (hidden, weight, bias))
    for g, w, a in zip(found, want, (hidden, weight, bias)):
        assert g.dtype == a.dtype and error(g, w.double()) <= 6e-3, "beyond a rounding or two to bfloat16"


def test_autocast_leaves_float64_alone(way):
    args = inputs()
    with torch.autocast("cpu", torch.bfloat16):
        got = linear_cross_entropy(*args)
    assert got.dtype == torch.float64 and error(got, exact(*args)[0]) < 1e-13


def test_a_loss_scale_keeps_float16_gradients(parts):
    hidden, weight, bias, labels = inputs(64, 8, 100, dtype=torch.float16, scale=0.1)
    for scale in (1.0, 2.0 ** 14):
        loss = linear_cross_entropy(hidden, weight, bias, labels)
        found = torch.autograd.grad(loss, (hidden, weight), torch.tensor(scale))
        want = exact(hidden, weight, bias, labels)[1]
        worst = max(error(f.double() / scale, w / UPSTREAM) for f, w in zip(found, want))
    assert worst < 2e-3


def test_nothing_to_predict_is_exactly_zero_and_attached(way):
    args = inputs(rows=0)
    loss, found = run(*args)
    assert loss.item() == 0
    for g, a in zip(found, args):
        assert g.shape == a.shape and (g == 0).all()


@pytest.mark.parametrize("label", [-100, -1, 23, 10 ** 12])
def test_no_label_is_ignored(way, label):
    hidden, weight, bias, labels = inputs()
    labels[3] = label
    assert linear_cross_entropy(hidden, weight, bias, labels).isnan()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_what_is_not_finite_reaches_the_loss(way, which, bad):
    args = inputs()
    with torch.no_grad():
        args[which][args[3][2] if which else 2] = bad  # a label's row of the matrix and its bias; a token's state
    assert not linear_cross_entropy(*args).isfinite()


def test_a_word_that_cannot_occur_costs_nothing(way):
    hidden, weight, bias, labels = inputs(words=8)
    labels = labels.clamp(max=6)
    want = exact(hidden, weight[:7], bias[:7], labels)[0]
    with torch.no_grad():
        bias[7] = -math.inf
    loss, found = run(hidden, weight, bias, labels)
    torch.testing.assert_close(loss, want, rtol=1e-13, atol=0)
    assert all(g.isfinite().all() for g in found)


def test_large_scores_do_not_overflow(way):
    args = inputs(dtype=torch.float32, scale=60.0)
    want, gradients = exact(*args)
    got, found = run(*args)
    assert error(got, want) <= 1e-6 and all(error(g, w) <= 1e-5 for g, w in zip(found, gradients))


@pytest.mark.parametrize("frozen", [(0,), (1,), (2,), (0, 1), (1, 2)])
def test_only_what_is_trained_gets_a_gradient(way, frozen):
    args = list(inputs())
    gradients = exact(*args)[1]
    for i in frozen:
        args[i] = args[i].detach()
    found = run(*args)[1]
    for g, w in zip(found, [w for i, w in enumerate(gradients) if i not in frozen], strict=True):
        torch.testing.assert_close(g, w, rtol=1e-12, atol=1e-14)


def test_without_a_graph(way):
    args = inputs()
    with torch.no_grad():
        loss = linear_cross_entropy(*args)
    assert not loss.requires_grad and error(loss, exact(*args)[0]) < 1e-13


def test_strides_and_repetition_change_no_bit(way):
    hidden, weight, bias, labels = inputs(dtype=torch.float32)
    want = run(hidden, weight, bias, labels)
    turned = [t.detach().t().contiguous().t().requires_grad_() for t in (hidden, weight)]
    for args in ((hidden, weight, bias, labels), (*turned, bias, labels)):
        loss, found = run(*args)
        torch.testing.assert_close(loss, want[0], rtol=1e-6, atol=0)
        assert [g.shape for g in found] == [g.shape for g in want[1]]
    again = run(hidden, weight, bias, labels)
    assert torch.equal(want[0], again[0]) and all(torch.equal(a, b) for a, b in zip(want[1], again[1]))


def test_a_second_derivative_is_a_clear_error(parts):
    hidden, weight, bias, labels = inputs()
    gradient, = torch.autograd.grad(linear_cross_entropy(hidden, weight, bias, labels), hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative where it is computed in parts"):
        gradient.sum().backward()


@pytest.mark.parametrize("rows, parted", [(6, False), (7, True)])
def test_the_size_of_the_scores_decides(monkeypatch, rows, parted):
    monkeypatch.setattr(module, "PLAIN_BYTES", 6 * 23 * 4)
    loss = linear_cross_entropy(*inputs(rows))
    seen, nodes = set(), [loss.grad_fn]
    while nodes:
        node = nodes.pop()
        seen.add(node.name())
        nodes += [n for n, _ in node.next_functions if n is not None]
    assert any("xtoolkit_linear_cross_entropy" in name for name in seen) == parted


def test_the_operator_is_well_formed(parts):
    hidden, weight, bias, labels = inputs(dtype=torch.float32)
    torch.library.opcheck(module._in_parts, (hidden, weight, bias, labels, torch.float32))
    torch.library.opcheck(module._in_parts, (hidden, weight.detach(), None, labels, torch.bfloat16))


def test_compiles_whole_with_any_number_of_rows(parts):
    compiled = torch.compile(linear_cross_entropy, fullgraph=True, dynamic=True, backend="aot_eager")
    for rows in (7, 9, 12):
        args = inputs(rows)
        want, gradients = exact(*args)
        loss = compiled(*args)
        found = torch.autograd.grad(loss, args[:3], torch.tensor(UPSTREAM, dtype=loss.dtype))
        torch.testing.assert_close(loss, want, rtol=1e-12, atol=0)
        for g, w in zip(found, gradients):
            torch.testing.assert_close(g, w, rtol=1e-12, atol=1e-14)


def test_it_never_asks_the_device_and_is_counted_as_a_linear_layer(monkeypatch):
    from torch.utils.flop_counter import FlopCounterMode

    monkeypatch.setattr(module, "PLAIN_BYTES", -1)
    hidden, weight = (torch.empty(n, 64, device="meta", requires_grad=True) for n in (500, 50265))
    with FlopCounterMode(display=False) as counter:
        loss = linear_cross_entropy(hidden, weight, None, torch.empty(500, dtype=torch.long, device="meta"))
    assert loss.shape == () and counter.get_total_flops() == 2 * 500 * 50265 * 64


def peak(run, folder):
    """(bytes allocated at the most, the largest single allocation) while ``run`` runs, by the allocator's events."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        kept = run()
    profiler.export_chrome_trace(str(folder / "trace.json"))
    trace = json.loads((folder / "trace.json").read_text())["traceEvents"]
    events = [e["args"] for e in trace if e["name"] == "[memory]"]
    totals = [e["Total Allocated"] for e in events]
    before = totals[0] - events[0]["Bytes"]
    assert kept is not None
    return max(totals) - before, max(e["Bytes"] for e in events)


def test_the_scores_never_exist_as_a_whole(monkeypatch, tmp_path):
    rows, words = 256, 8192
    monkeypatch.setattr(module, "WORDS", 512)
    args = inputs(rows, 16, words, dtype=torch.float32)
    found, scores = {}, rows * words * 4
    for name, size in WAYS.items():
        monkeypatch.setattr(module, "PLAIN_BYTES", size)
        found[name] = peak(lambda: run(*args), tmp_path)
    assert found["plain"][0] > 2 * scores and found["plain"][1] >= scores
    # The gradient of the matrix is as large as one chunk of scores here; a pass holds three or four chunks at once.
    assert found["parts"][0] < scores / 2 and found["parts"][1] <= scores / 16


@pytest.mark.parametrize("hidden, weight, bias, labels, words", [
    ((3, 4), (9, 5), None, torch.zeros(3, dtype=torch.long), r"not \(3, 4\), \(9, 5\) and \(3,\)"),
    ((3, 4), (9, 4), None, torch.zeros(2, dtype=torch.long), r"labels \(M,\), not \(3, 4\)"),
    ((2, 3, 4), (9, 4), None, torch.zeros(2, dtype=torch.long), r"hidden \(M, D\)"),
    ((3, 4), (9, 4), (4,), torch.zeros(3, dtype=torch.long), r"`bias`.*\(9,\), not \(4,\)"),
    ((3, 4), (9, 4), None, torch.zeros(3), "int64, not torch.float32"),
])
def test_shapes_that_do_not_fit(hidden, weight, bias, labels, words):
    with pytest.raises(ValueError, match=words):
        linear_cross_entropy(torch.rand(hidden), torch.rand(weight), None if bias is None else torch.rand(bias), labels)
