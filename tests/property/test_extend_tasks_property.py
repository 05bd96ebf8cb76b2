"""Law of incremental learning: what was known answers with the same bits after new tasks came."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hermes.model import NetworkConfig, build_network, extend_tasks, network_names


@settings(deadline=None, max_examples=12)
@given(
    name=st.sampled_from(network_names()),
    tasks=st.integers(1, 5),
    sources=st.lists(st.one_of(st.none(), st.integers(0, 4)), max_size=4),
    seed=st.integers(0, 2**31),
    data=st.data(),
)
def test_old_tasks_keep_their_bits(name, tasks, sources, seed, data):
    torch.manual_seed(seed)
    net = build_network(NetworkConfig(name, width=4, tasks=tasks)).eval()
    sources = [s if s is None else s % tasks for s in sources]
    rows = torch.tensor([data.draw(st.lists(st.integers(0, tasks - 1), min_size=1, max_size=4))])
    mask = torch.rand(rows.shape) > 0.3
    image = torch.randn(1, 1, 32, 16, 16)
    modality = torch.tensor([2])
    with torch.no_grad():
        before = net(image, rows, modality, task_mask=mask)
        extend_tasks(net, len(sources), sources, torch.Generator().manual_seed(seed))
        after = net(image, rows, modality, task_mask=mask)
    assert net.config.tasks == tasks + len(sources)
    assert torch.equal(before.logits, after.logits)
    assert torch.equal(before.task_tokens, after.task_tokens)
    assert torch.equal(before.modality_logits, after.modality_logits)
