"""Every member of the family keeps the same contract (tiny widths)."""

import pytest
import torch

from hermes.errors import BadImageError, BadRequestError
from hermes.model import NetworkConfig, build_network, contract, extend_tasks, network_names

SIZE = (32, 48, 32)
TASKS = 4


@pytest.fixture(autouse=True)
def _one_thread_and_seed():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=network_names())
def net(request):
    torch.manual_seed(1)
    return build_network(NetworkConfig(request.param, width=4, tasks=TASKS)).eval()


@pytest.fixture
def image():
    return torch.randn(2, 1, *SIZE)


ROWS = torch.tensor([[0, 3, 1], [2, 0, 0]])
MASK = torch.tensor([[True, True, True], [True, False, False]])
MODALITIES = torch.tensor([1, 4])


def test_shapes(net, image):
    out = net(image, ROWS, MODALITIES, task_mask=MASK)
    assert out.logits.shape == (2, 3, *SIZE)
    assert out.modality_logits.shape == (2, 6)
    assert out.task_tokens.shape[:2] == (2, 3)
    if out.auxiliary_logits is not None:
        assert out.auxiliary_logits.shape == out.logits.shape


def test_evaluation_is_deterministic_and_finite(net, image):
    with torch.no_grad():
        first, second = (net(image, ROWS, MODALITIES, task_mask=MASK) for _ in range(2))
    assert torch.isfinite(first.logits).all()
    assert torch.equal(first.logits, second.logits)
    assert torch.equal(first.modality_logits, second.modality_logits)


def test_encode_is_forward_without_the_contraction(net, image):
    with torch.no_grad():
        encoded = net.encode(image, ROWS, MODALITIES)
        out = net(image, ROWS, MODALITIES)
    assert encoded.features.shape[2:] == SIZE
    assert torch.equal(contract(encoded.features, encoded.class_weights), out.logits)
    one = contract(encoded.features, encoded.class_weights[:, 1:2])
    torch.testing.assert_close(one, out.logits[:, 1:2], atol=1e-5, rtol=1e-4)


def test_rows_under_a_mask_do_not_matter(net, image):
    other_rows = torch.where(MASK, ROWS, torch.tensor(-7))
    known = torch.tensor([True, False])
    with torch.no_grad():
        a = net(image, ROWS, MODALITIES, task_mask=MASK, modality_known=known)
        b = net(image, other_rows, torch.tensor([1, 99]), task_mask=MASK, modality_known=known)
    assert torch.equal(a.logits, b.logits)


def test_absence_and_presence_differ(net, image):
    with torch.no_grad():
        real = net(image, ROWS, MODALITIES).logits
        null = net(image, ROWS, MODALITIES, task_mask=MASK).logits
        unknown = net(image, ROWS, MODALITIES, modality_known=torch.tensor([False, True])).logits
    assert not torch.allclose(real[1, 1], null[1, 1])
    assert not torch.allclose(real[0], unknown[0])
    torch.testing.assert_close(real[1], unknown[1], atol=1e-4, rtol=1e-3)


def test_samples_of_a_batch_do_not_interact(net, image):
    with torch.no_grad():
        both = net(image, ROWS, MODALITIES, task_mask=MASK).logits
        alone = net(image[1:], ROWS[1:], MODALITIES[1:], task_mask=MASK[1:]).logits
    torch.testing.assert_close(both[1:], alone, atol=1e-3, rtol=1e-3)


def test_the_order_of_the_tasks_is_the_order_of_the_channels(net, image):
    order = torch.tensor([2, 0, 1])
    with torch.no_grad():
        logits = net(image[:1], ROWS[:1], MODALITIES[:1]).logits
        permuted = net(image[:1], ROWS[:1, order], MODALITIES[:1]).logits
    torch.testing.assert_close(logits[:, order], permuted, atol=1e-3, rtol=1e-3)


def test_gradient_reaches_every_parameter(net, image):
    net.train()
    known = torch.tensor([True, False])
    rows = torch.tensor([[0, 1, 2], [3, 0, 0]])
    out = net(image, rows, MODALITIES, task_mask=MASK, modality_known=known)
    loss = out.logits.square().mean() + out.modality_logits.square().mean()
    if out.auxiliary_logits is not None:
        loss = loss + out.auxiliary_logits.square().mean()
    loss.backward()
    unreached = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.any()]
    assert unreached == []


def test_unasked_rows_get_no_gradient(net, image):
    net(image, torch.tensor([[0], [2]]), MODALITIES).logits.square().mean().backward()
    for name, p in net.named_parameters():
        if name.endswith("task_prior"):
            assert not p.grad[[1, 3]].any()
            assert p.grad[[0, 2]].any()


def test_state_dict_round_trip(net, image):
    other = build_network(net.config).eval()
    other.load_state_dict(net.state_dict())
    with torch.no_grad():
        assert torch.equal(net(image, ROWS, MODALITIES).logits, other(image, ROWS, MODALITIES).logits)


def test_new_tasks_leave_old_outputs_bit_for_bit(net, image):
    with torch.no_grad():
        before = net(image, ROWS, MODALITIES, task_mask=MASK)
        extend_tasks(net, 3, [2, None, None], torch.Generator().manual_seed(5))
        after = net(image, ROWS, MODALITIES, task_mask=MASK)
        new = net(image[:1], torch.tensor([[4, 5, 6]]), MODALITIES[:1]).logits
    assert net.config.tasks == TASKS + 3
    assert torch.equal(before.logits, after.logits)
    assert torch.equal(before.modality_logits, after.modality_logits)
    assert not torch.allclose(new[:, 1], new[:, 2])


def test_a_copied_task_answers_like_its_source(net, image):
    extend_tasks(net, 1, [3])
    with torch.no_grad():
        source = net(image, torch.tensor([[3], [3]]), MODALITIES).logits
        copy = net(image, torch.tensor([[TASKS], [TASKS]]), MODALITIES).logits
    assert torch.equal(source, copy)


def test_bfloat16_autocast_is_close_to_float32(net):
    # enough voxels at 1/16 that the instance norms are well conditioned
    image = torch.randn(1, 1, 64, 64, 64)
    with torch.no_grad():
        exact = net(image, ROWS[:1], MODALITIES[:1]).logits
        with torch.autocast("cpu", torch.bfloat16):
            rough = net(image, ROWS[:1], MODALITIES[:1]).logits
    assert torch.isfinite(rough).all()
    assert (rough.float() - exact).square().mean() < 0.25 * exact.var()


@pytest.mark.parametrize(
    "shape", [(1, 1, 32, 32, 40), (1, 2, 32, 32, 32), (1, 32, 32, 32), (1, 1, 16, 16, 16)]
)
def test_unsuitable_images_are_refused(net, shape):
    with pytest.raises(BadImageError, match="Expected"):
        net(torch.zeros(shape), ROWS[:1], MODALITIES[:1])


def test_unsuitable_rows_are_refused(net, image):
    with pytest.raises(BadRequestError, match="task rows from 0 to 3"):
        net(image, ROWS + 1, MODALITIES)
    with pytest.raises(BadRequestError, match="mask"):
        net(image, ROWS - 1, MODALITIES)
    with pytest.raises(BadRequestError, match="modality rows from 0 to 4"):
        net(image, ROWS, torch.tensor([0, 5]))
    with pytest.raises(BadRequestError, match="one line per image"):
        net(image, ROWS[:1], MODALITIES)
    with pytest.raises(BadRequestError, match="one per image"):
        net(image, ROWS, MODALITIES[:1])
