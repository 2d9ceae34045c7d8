"""Teacher: never trained, always in evaluation mode, in the checkpoint; its three modes."""

import pytest
import torch
from torch import nn

from xtoolkit.batch import ImageField
from xtoolkit.encoders.beit import BEiTv2
from xtoolkit.encoders.projection import Projection
from xtoolkit.encoders.teacher import Teacher
from xtoolkit.registry import check


def student(**keys):
    return BEiTv2(**{**dict(width=16, layers=2, heads=4, patch_size=4, image_size=8, drop_path=0.5), **keys})


def pair(**keys):
    vision = student()
    return vision, Teacher(of="vision", modules=nn.ModuleDict({"vision": vision}), **keys)


def image():
    return ImageField(torch.randn(2, 3, 8, 8), patch_mask=torch.tensor([[True, False, False, True]] * 2))


def moved(module):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter))


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters()))


def test_a_teacher_owns_its_parameters_and_trains_none():
    vision, teacher = pair()
    assert not any(p.requires_grad for p in teacher.parameters()) and not teacher.TRAINABLE
    assert not {id(p) for p in teacher.parameters()} & {id(p) for p in vision.parameters()}
    assert set(teacher.state_dict()) == {f"encoder.{name}" for name in vision.state_dict()}
    assert (teacher.width, teacher.patch_size, teacher.image_size) == (16, 4, 8)
    assert not teacher(view=None, image=image()).tokens.requires_grad
    assert all(p.requires_grad for p in vision.parameters())


def test_a_teacher_stays_in_evaluation_mode():
    vision, teacher = pair()
    model = nn.ModuleDict({"vision": vision, "teacher": teacher}).train()
    assert vision.training and not any(m.training for m in teacher.modules())
    assert torch.equal(*[teacher(view=None, image=x).tokens for x in [image()] * 2])
    model.vision.eval()
    x = image()
    assert torch.equal(teacher(view=None, image=x).tokens, vision(view=None, image=x).tokens)


def test_ema_moves_by_the_momentum_after_each_update():
    vision, teacher = pair(mode="ema", momentum=0.9)
    expected = {k: v.clone() for k, v in teacher.encoder.named_parameters()}
    for _ in range(3):
        moved(vision)
        teacher.after_update()
        expected = {k: 0.9 * v + 0.1 * dict(vision.named_parameters())[k] for k, v in expected.items()}
    for name, parameter in teacher.encoder.named_parameters():
        torch.testing.assert_close(parameter.data, expected[name].detach(), msg=name)
    assert not any(p.requires_grad for p in teacher.parameters())


@pytest.mark.parametrize("mode", ["frozen", "random"])
def test_the_others_stay(mode):
    vision, teacher = pair(mode=mode)
    before = [p.clone() for p in teacher.parameters()]
    moved(vision)
    teacher.after_update()
    assert all(torch.equal(a, b) for a, b in zip(before, teacher.parameters()))


@pytest.mark.parametrize("mode, copies", [("ema", True), ("frozen", True), ("random", False)])
def test_copies_are_taken_after_the_students_weights_are_loaded(tmp_path, mode, copies):
    other = student()
    moved(other)
    torch.save(other.state_dict(), tmp_path / "w.pt")
    vision = student(init=str(tmp_path / "w.pt"))
    teacher = Teacher(of="vision", modules={"vision": vision}, mode=mode)
    drawn = [p.clone() for p in teacher.parameters()]
    vision.load_init()
    teacher.load_init()
    assert same(vision, other) and same(teacher.encoder, other) == copies
    assert copies or all(torch.equal(a, b) for a, b in zip(drawn, teacher.parameters()))


def test_random_weights_are_drawn_anew():
    vision, teacher = pair(mode="random")
    assert not torch.equal(teacher.encoder.blocks[0].mlp.fc1.weight, vision.blocks[0].mlp.fc1.weight)
    assert teacher.encoder.blocks[0].mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.2)


def test_bad_keys_are_told():
    with pytest.raises(ValueError, match=r"`text_proj` \(Projection\) has no `init_weights`"):
        Teacher(of="text_proj", modules={"text_proj": Projection(widths={"x": 4})}, mode="random")
    found, = check(Teacher, {"of": "vision", "momentum": 1.5}, "here")
    assert found == "here: `momentum` of Teacher must be a number of at least 0 and at most 1, not 1.5"
