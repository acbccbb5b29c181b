import pytest
import torch
from torch.nn import functional as F

from models.entities import EntityConfig, EntityTower, text_embedding

CONFIG = EntityConfig(groups=("brand", "season"), sizes=(5, 3), embed_dim=16, entity_dim=8)


@pytest.fixture
def tower() -> EntityTower:
    torch.manual_seed(0)
    return EntityTower(CONFIG)


def test_sum_is_the_papers_formula(tower: EntityTower) -> None:
    ids = torch.tensor([[2, 3]])
    description = F.normalize(torch.randn(1, 16), dim=-1)
    expected = description.clone()
    for k, (encoder, gate) in enumerate(zip(tower.encoders, tower.gates, strict=True)):
        h = encoder.mlp(encoder.table.weight[ids[0, k]])
        h = h / h.norm()
        expected = expected + torch.sigmoid(gate(h)) * h
    actual = text_embedding(description, torch.ones(1, 1, dtype=torch.bool), tower(ids))
    torch.testing.assert_close(actual, expected / expected.norm())


def test_absent_entities_contribute_exactly_nothing(tower: EntityTower) -> None:
    description = F.normalize(torch.randn(2, 16), dim=-1)
    described = torch.ones(2, 1, dtype=torch.bool)
    entities = tower(torch.tensor([[0, 0], [0, 2]]))
    text = text_embedding(description, described, entities)
    assert torch.equal(entities.sum()[0], torch.zeros(16))
    assert torch.equal(text[0], F.normalize(description, dim=-1)[0])
    assert not torch.equal(text[1], text[0])


def test_absent_entities_get_no_gradient(tower: EntityTower) -> None:
    before = [table.clone() for table in (tower.encoders[0].table.weight, tower.encoders[1].table.weight)]
    tower(torch.tensor([[0, 2]])).sum()[:, :3].sum().backward()
    for parameter in (*tower.encoders[0].parameters(), *tower.gates[0].parameters()):
        assert not parameter.grad.any()
    used = tower.encoders[1].table.weight.grad.abs().sum(1) > 0
    assert used.tolist() == [False, False, True, False]
    assert not before[0][0].any()


def test_equal_gates_are_one_and_are_no_parameters() -> None:
    tower = EntityTower(CONFIG.model_copy(update={"gated": False}))
    assert not [name for name, _ in tower.named_parameters() if name.startswith("gates")]
    gates = tower(torch.tensor([[1, 0]])).gates
    assert gates.tolist() == [[1.0, 0.0]]


def test_a_description_alone_entities_alone_and_nothing(tower: EntityTower) -> None:
    description = F.normalize(torch.randn(2, 16), dim=-1)
    entities = tower(torch.tensor([[1, 1], [0, 0]]))
    text = text_embedding(description, torch.zeros(2, 1, dtype=torch.bool), entities)
    torch.testing.assert_close(text[0], F.normalize(entities.sum()[0], dim=-1))
    assert not text[1].any()


def test_mean_gates_leave_out_texts_without_the_group(tower: EntityTower) -> None:
    ids = torch.tensor([[1, 0], [2, 0], [0, 0]])
    gates = tower(ids).gates
    assert tower.mean_gates(ids) == {"brand": pytest.approx(float(gates[:2, 0].mean()))}


def test_groups_and_sizes_must_fit() -> None:
    with pytest.raises(ValueError, match="2 entity groups and 1 sizes"):
        EntityTower(EntityConfig(groups=("brand", "season"), sizes=(5,), embed_dim=16))
