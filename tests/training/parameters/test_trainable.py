"""Which parameters move: by name, by seed, by mask, as low-rank updates; and what batch norm does meanwhile."""

import copy

import pytest
import torch
from torch import nn
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.swin_transformer import SwinTransformer
from torchvision.models.vision_transformer import VisionTransformer

from counterpoise.config import Stage, Training
from counterpoise.errors import ConfigError
from counterpoise.training.models import Classifier, build_model
from counterpoise.training.parameters.trainable import candidates, merged_state_dict, prepare, set_mode

NORMS = ("bn1", "bn2", "bn3", "downsample.1")


def make_stage(name="all", batch_norm="train", **settings):
    return Stage(name="fair", data=["real"], trainable={"name": name, **settings}, batch_norm=batch_norm)


@pytest.fixture(scope="module")
def resnet():
    return build_model(Training(backbone="resnet18"), 2, seed=0)


@pytest.fixture
def model(resnet):
    return copy.deepcopy(resnet)


def moving(model):
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def random_images(n=4, size=32):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=generator)


def train(model, stage, steps=2):
    """Trains what moves; at momentum 0.9 and with weight decay."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=0.1)
    set_mode(model, stage)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(random_images()), torch.tensor([0, 1, 1, 0])).backward()
        optimizer.step()


def changed(before, after):
    assert set(before) == set(after)
    return {name for name in before if not torch.equal(before[name], after[name])}


def test_all_62_tensors_of_a_resnet_18_move(model):
    prepare(model, make_stage(), seed=0)
    assert len(moving(model)) == 62


def test_the_last_layer_alone_moves(model):
    before = merged_state_dict(model)
    prepare(model, make_stage("last_layer", batch_norm="frozen"), seed=0)
    assert moving(model) == ["backbone.fc.weight", "backbone.fc.bias"]
    train(model, make_stage("last_layer", batch_norm="frozen"))
    assert changed(before, merged_state_dict(model)) == {"backbone.fc.weight", "backbone.fc.bias"}


def test_preparing_again_forgets_what_moved_before(model):
    prepare(model, make_stage("last_layer"), seed=0)
    prepare(model, make_stage("blocks", blocks=["conv1"]), seed=0)
    assert moving(model) == ["backbone.conv1.weight"]


@pytest.mark.parametrize(("blocks", "count"), [(["layer4"], 15), (["layer4.1.conv1"], 1), (["layer1", "fc"], 14)])
def test_blocks_and_all_but_blocks_share_the_tensors_out(model, blocks, count):
    prepare(model, make_stage("blocks", blocks=blocks), seed=0)
    inside = moving(model)
    assert len(inside) == count
    assert all(name.startswith(tuple(f"backbone.{block}." for block in blocks)) for name in inside)
    prepare(model, make_stage("all_but_blocks", blocks=blocks), seed=0)
    assert sorted(inside + moving(model)) == sorted(dict(model.named_parameters()))


def test_blocks_of_a_sequence_are_numbers_and_1_is_not_10():
    model = Classifier(nn.Sequential(*(nn.Conv2d(3, 3, 1) for _ in range(10)), nn.Linear(3, 2)))
    prepare(model, make_stage("blocks", blocks=["1"]), seed=0)
    assert moving(model) == ["backbone.1.weight", "backbone.1.bias"]


def test_an_unknown_block_gets_a_suggestion_and_the_names_there_are(model):
    with pytest.raises(ConfigError, match="did you mean 'layer4'") as error:
        prepare(model, make_stage("blocks", blocks=["layer_4"]), seed=0)
    assert "conv1, bn1, relu, maxpool, layer1, layer2, layer3, layer4, avgpool, fc" in str(error.value)


@pytest.mark.parametrize(
    "stage", [make_stage("blocks", blocks=["avgpool"]), make_stage("blocks", blocks=["bn1"], batch_norm="frozen")]
)
def test_a_stage_in_which_nothing_can_move_is_an_error(model, stage):
    with pytest.raises(ConfigError, match="no parameters are left to train"):
        prepare(model, stage, seed=0)


def test_errors_come_on_the_meta_device_too():
    with torch.device("meta"):
        model = Classifier(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 2)))
    with pytest.raises(ConfigError, match="no such block"):
        prepare(model, make_stage("blocks", blocks=["layer4"]), seed=0)
    prepare(model, make_stage("lora"), seed=0)


@pytest.mark.parametrize("name", ["last_layer", "lora"])
def test_a_network_without_linear_layers_has_no_last_one(name):
    model = build_model(Training(backbone="squeezenet1_1"), 2, seed=0)
    with pytest.raises(ConfigError, match="no linear layer"):
        prepare(model, make_stage(name), seed=0)


@pytest.mark.parametrize(("share", "count"), [(0.5, 31), (0.726, 45), (0.001, 1)])
def test_a_random_share_of_the_tensors_depends_on_the_seed(model, share, count):
    drawn = []
    for seed in (0, 0, 1):
        prepare(model, make_stage("random", share=share), seed)
        drawn.append(moving(model))
    assert len(drawn[0]) == count
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2]


def test_a_random_share_is_drawn_from_all_tensors_alike(model):
    names, drawn = list(dict(model.named_parameters())), []
    for seed in range(100):
        prepare(model, make_stage("random", share=0.5), seed)
        drawn += moving(model)
    assert all(25 <= drawn.count(name) <= 75 for name in names)  # five standard deviations


def test_a_mask_moves_its_tensors_and_nothing_else(model):
    mask, before = ["backbone.layer1.0.conv1.weight", "backbone.fc.bias"], merged_state_dict(model)
    stage = make_stage("selective", top_k=55, batch_norm="frozen")
    prepare(model, stage, seed=0, mask=mask)
    train(model, stage)
    assert changed(before, merged_state_dict(model)) == set(mask)


def test_batch_norm_moves_as_the_stage_says(resnet):
    before = merged_state_dict(resnet)
    statistics = {name for name in before if "running" in name or "num_batches" in name}
    scales = {name for name in before if name.split(".", 1)[1].rsplit(".", 1)[0].endswith(NORMS)} - statistics
    assert (len(statistics), len(scales)) == (60, 40)
    found = {}
    for policy in ("train", "frozen_statistics", "frozen"):
        model, stage = copy.deepcopy(resnet), make_stage(batch_norm=policy)
        prepare(model, stage, seed=0)
        train(model, stage)
        found[policy] = changed(before, merged_state_dict(model))
    assert found["train"] == set(before)
    assert found["frozen_statistics"] == set(before) - statistics
    assert found["frozen"] == set(before) - statistics - scales
    assert len(candidates(resnet, make_stage(batch_norm="frozen"))) == 22


def test_only_batch_norm_leaves_training_mode(model):
    model.backbone.avgpool = nn.Dropout(0.5)
    set_mode(model.eval(), make_stage(batch_norm="frozen_statistics"))
    assert model.backbone.avgpool.training
    assert not model.backbone.layer1[0].bn1.training
    set_mode(model, make_stage())
    assert model.backbone.layer1[0].bn1.training


def test_the_plain_state_is_a_copy(model):
    state = merged_state_dict(model)
    with torch.no_grad():
        model.backbone.fc.bias += 1
    assert changed(state, merged_state_dict(model)) == {"backbone.fc.bias"}


def seeded(make):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Classifier(make())


MODELS = {
    "small_cnn": lambda: build_model(Training(), 2, seed=0),
    "resnet18": lambda: build_model(Training(backbone="resnet18"), 2, seed=0),
    "convnext": lambda: seeded(lambda: ConvNeXt([CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 1)], num_classes=2)),
    "vit": lambda: seeded(lambda: VisionTransformer(32, 8, 1, 2, 16, 32, num_classes=2)),
    "swin": lambda: seeded(lambda: SwinTransformer([4, 4], 8, [1, 1], [2, 2], [4, 4], num_classes=2)),
}


@pytest.mark.parametrize("name", MODELS)
def test_lora_starts_where_the_model_is_and_its_plain_state_gives_the_same_logits(name):
    plain, stage = MODELS[name](), make_stage("lora", rank=2, alpha=4)
    model, images = copy.deepcopy(plain).eval(), random_images()
    prepare(model, stage, seed=0)
    with torch.inference_mode():
        torch.testing.assert_close(model(images), plain.eval()(images), rtol=0, atol=0)
    train(model, stage)
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)
    merged = copy.deepcopy(plain)
    merged.load_state_dict(merged_state_dict(model))
    with torch.inference_mode():
        logits = model.eval()(images)
        torch.testing.assert_close(merged.eval()(images), logits, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(plain(images), logits, atol=1e-3)


def test_lora_moves_low_rank_updates_and_the_head(model):
    before, stage = merged_state_dict(model), make_stage("lora", rank=3, batch_norm="frozen_statistics")
    prepare(model, stage, seed=0)
    names = [name for name in moving(model) if not name.startswith("backbone.fc.")]
    assert len(names) == 2 * 20  # two factors for each convolution
    assert all(".lora_" in name for name in names)
    train(model, stage)
    after = merged_state_dict(model)
    convolutions = {name for name in before if before[name].ndim == 4}
    assert changed(before, after) == convolutions | {"backbone.fc.weight", "backbone.fc.bias"}
    update = (after["backbone.conv1.weight"] - before["backbone.conv1.weight"]).flatten(1)
    assert torch.linalg.matrix_rank(update, rtol=1e-4) == 3


def test_lora_leaves_out_grouped_convolutions_and_adapts_attention():
    convnext, vit = MODELS["convnext"](), MODELS["vit"]()
    grouped = {name for name, module in convnext.named_modules() if getattr(module, "groups", 1) > 1}
    assert len(grouped) == 2
    for model in (convnext, vit):
        prepare(model, make_stage("lora"), seed=0)
    assert not any(name.startswith(tuple(grouped)) for name in moving(convnext))
    assert any("self_attention.lora_A" in name for name in moving(vit))


def test_the_plain_state_of_lora_is_pefts_own_merge(model):
    stage = make_stage("lora", alpha=2.5)
    prepare(model, stage, seed=0)
    train(model, stage)
    state = merged_state_dict(model)
    for name, module in model.named_modules():
        if hasattr(module, "lora_A"):
            module.merge()
            torch.testing.assert_close(state[f"{name}.weight"], module.get_base_layer().weight.detach())


def test_the_update_is_scaled_by_alpha_over_rank():
    model = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 2)))
    weight = model.backbone[1].weight.detach().clone()
    prepare(model, make_stage("lora", rank=2, alpha=6), seed=0)
    factors = dict(model.named_parameters())
    a, b = (factors[f"backbone.1.lora_{factor}.default.weight"] for factor in "AB")
    nn.init.normal_(b, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(merged_state_dict(model)["backbone.1.weight"], weight + 3 * (b @ a).detach())


def test_the_factors_of_lora_depend_on_the_seed_and_on_nothing_else(resnet):
    torch.manual_seed(1)
    before, states = torch.get_rng_state(), []
    for seed in (3, 3, 4):
        model = copy.deepcopy(resnet)
        prepare(model, make_stage("lora"), seed)
        states.append(model.state_dict())
    assert torch.equal(torch.get_rng_state(), before)
    assert changed(states[0], states[1]) == set()
    assert changed(states[0], states[2])
