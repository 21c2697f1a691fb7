import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from soloist.kernels.errors import DataError, UsageError  # noqa: E402
from soloist.kernels.layout import dequantize, unpack_nibbles  # noqa: E402
from soloist.kernels.pack import KERNEL, pack, pack_ref  # noqa: E402


def _marked(case):
    return pytest.param(case, id=case.name, marks=[pytest.mark.slow] if case.slow else [])


@pytest.mark.parametrize("case", [_marked(case) for case in KERNEL.cases])
def test_the_kernel_gives_the_references_bits(case):
    outcome = KERNEL.check(case, "cpu", torch.seed() % 2**31)
    assert outcome.passed, outcome


@pytest.mark.gpu
@pytest.mark.parametrize("case", [_marked(case) for case in KERNEL.cases])
def test_the_same_on_a_gpu(case):
    if not torch.cuda.is_available():
        pytest.skip("no NVIDIA GPU")
    outcome = KERNEL.check(case, "cuda", torch.seed() % 2**31)
    assert outcome.passed, outcome


def _row(*values):
    return torch.tensor([[*values, *[0.0] * (32 - len(values))]])


def test_the_extreme_gets_the_code_that_only_one_side_has():
    found = pack_ref(_row(4.0, -2.0, 0.25, 0.75))
    assert found.scales.tolist() == [[-0.5]]  # 4 / -8
    # ties go to even: 0.25 / -0.5 = -0.5 becomes 0, 0.75 / -0.5 = -1.5 becomes -2
    assert unpack_nibbles(found.codes)[0, :5].tolist() == [0, 12, 8, 6, 8]
    assert pack_ref(_row(-4.0, 4.0)).scales.tolist() == [[0.5]]  # of two equal extremes the negative one
    assert unpack_nibbles(pack_ref(_row(-4.0, 4.0)).codes)[0, :2].tolist() == [0, 15]


def test_eight_bits_and_zero_points_by_hand():
    found = pack_ref(_row(-12.7, 6.35, 0.1), bits=8)
    assert found.scales.item() == pytest.approx(0.1, rel=1e-3)
    assert found.codes[0, :3].tolist() == [-127, 64, 1]
    found = pack_ref(_row(-3.2, 1.6, 3.1), bits=5)  # 3.2 / 16: the extreme gets the code that only one side has
    assert found.scales.item() == pytest.approx(0.2, rel=1e-3)
    assert found.bits == 5
    assert found.stored_bits == 8
    assert found.codes[0, :3].tolist() == [-16, 8, 15]
    assert pack_ref(_row(3.2, -1.6, -3.2), bits=6).codes[0, :3].tolist() == [31, -16, -32]
    found = pack_ref(_row(-3.0, 12.0), zeros=True)
    assert found.scales.tolist() == [[1.0]]
    assert found.zeros.tolist() == [[3]]
    assert unpack_nibbles(found.codes)[0, :3].tolist() == [0, 15, 3]


def test_codes_fit_the_scale_that_is_stored_and_not_the_exact_one():
    weight = torch.randn(40, 32, generator=torch.Generator().manual_seed(3))
    found = pack_ref(weight, bits=8)
    stored = found.scales.double()
    exact = weight.double().abs().amax(1, keepdim=True) / 127
    nearest = (weight.double() / stored).clamp(-127, 127).round()
    assert torch.equal(found.codes.double(), nearest)
    assert not torch.equal(found.codes.double(), (weight.double() / exact).round())


@pytest.mark.parametrize("options", [{}, {"bits": 8}, {"zeros": True}, {"search": True}])
@pytest.mark.parametrize("run", [pack, pack_ref])
def test_a_group_of_zeros_and_one_too_small_for_fp16_become_zeros(run, options):
    weight = torch.zeros(2, 64)
    weight[1, 3] = 1e-9
    weight[1, 40] = 2.0
    found = run(weight, **options)
    assert found.scales[:, 0].tolist() == [0.0, 0.0]
    assert found.scales[0, 1] == 0
    assert not torch.signbit(found.scales[0]).any()
    values = dequantize(found)
    assert not values[0].any()
    assert not values[1, :32].any()
    assert values[1, 40] == pytest.approx(2.0, rel=0.01)


@pytest.mark.parametrize("bits", [4, 5, 6, 8])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_search_never_loses_and_mostly_wins(bits, weighted):
    random = torch.Generator().manual_seed(5)
    weight = torch.randn(64, 96, generator=random)
    h = torch.rand(96, generator=random) ** 4 if weighted else torch.ones(96)
    lost = [
        (h.double() * (dequantize(q, torch.float64) - weight.double()) ** 2).reshape(64, 3, 32).sum(-1)
        for q in (
            pack_ref(weight, bits=bits),
            pack_ref(weight, bits=bits, search=True, importance=h if weighted else None),
        )
    ]
    assert (lost[1] <= lost[0] * (1 + 1e-5)).all()  # sums in fp32 decide
    assert (lost[1] < lost[0]).float().mean() > 0.5


def test_rows_in_chunks_are_rows_alone(monkeypatch):
    weight = torch.randn(7, 96, generator=torch.Generator().manual_seed(1))
    whole = pack_ref(weight, search=True)
    monkeypatch.setattr("soloist.kernels.pack._CHUNK", 200)
    parts = pack_ref(weight, search=True)
    assert torch.equal(whole.codes, parts.codes)
    assert torch.equal(whole.scales, parts.scales)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e5])
@pytest.mark.parametrize("run", [pack, pack_ref])
def test_weights_that_are_no_numbers_are_refused(run, bad):
    with pytest.raises(DataError, match="largest weight is"):
        run(_row(1.0, bad))


@pytest.mark.parametrize(
    ("weight", "options", "said"),
    [
        (torch.ones(2, 48), {}, "columns a multiple of 32"),
        (torch.ones(32), {}, "shape"),
        (torch.ones(0, 32), {}, "shape"),
        (torch.ones(2, 32), {"group": 16}, "group size 16"),
        (torch.ones(2, 32), {"bits": 7}, "7 bits"),
        (torch.ones(2, 32), {"bits": 8, "zeros": True}, "with zero points"),
        (torch.ones(2, 32), {"importance": torch.ones(32)}, "search=True"),
    ],
)
def test_what_cannot_be_packed_is_refused(weight, options, said):
    with pytest.raises(UsageError, match=said):
        pack_ref(weight, **options)


@pytest.mark.parametrize("importance", [torch.ones(31), -torch.ones(32), torch.full((32,), float("nan"))])
def test_importance_must_be_one_number_a_column(importance):
    with pytest.raises(DataError, match="importance must be 32"):
        pack_ref(torch.ones(2, 32), search=True, importance=importance)
