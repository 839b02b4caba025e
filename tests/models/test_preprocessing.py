"""What an image goes through before a network sees it."""

import json

import pytest
from torchvision import models as tv

from tl.errors import UserError
from tl.models import zoo
from tl.models.preprocessing import Preprocessing, preprocessing_of, with_image_size

IMAGENET = Preprocessing(256, 224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "bilinear")


@pytest.mark.parametrize("weights", [None, "IMAGENET1K_V1", "imagenet1k_v1", "my/own.pth"])
def test_it_is_that_of_the_weights(weights):
    assert preprocessing_of("resnet18", weights) == IMAGENET


def test_weights_of_one_architecture_differ():
    assert preprocessing_of("resnet50", "IMAGENET1K_V2").resize_size == 232
    assert preprocessing_of("vit_b_16", "IMAGENET1K_SWAG_E2E_V1").crop_size == 384
    assert preprocessing_of("inception_v3", "DEFAULT").crop_size == 299
    assert preprocessing_of("swin_t", "DEFAULT").interpolation == "bicubic"


@pytest.mark.parametrize("name", zoo.architectures())
def test_every_entry_of_torchvision_can_be_read_and_written(name):
    for weights in tv.get_model_weights(name).__members__:
        found = preprocessing_of(name, weights)
        assert found.antialias
        assert Preprocessing.from_dict(json.loads(json.dumps(found.to_dict()))) == found


def test_unknown_weights_list_those_there_are():
    with pytest.raises(UserError, match=r"'IMAGENET'.*IMAGENET1K_V1.*DEFAULT|DEFAULT"):
        preprocessing_of("resnet18", "IMAGENET")


def test_another_image_size_keeps_the_ratio():
    assert with_image_size(IMAGENET, 112).resize_size == 128
    assert with_image_size(IMAGENET, 112).crop_size == 112
    assert with_image_size(IMAGENET, 224) == IMAGENET
    with pytest.raises(UserError, match="image_size is 0"):
        with_image_size(IMAGENET, 0)


@pytest.mark.parametrize(
    "change", [{"std": [0.2, 0, 0.2]}, {"crop_size": -1}, {"mean": [1.0]}, {"colour": 1}]
)
def test_values_that_make_no_sense_are_refused(change):
    with pytest.raises(UserError, match="preprocessing"):
        Preprocessing.from_dict({**IMAGENET.to_dict(), **change})


def test_a_missing_value_is_refused():
    with pytest.raises(UserError, match="mean"):
        Preprocessing.from_dict({"resize_size": 256})


def test_timm_says_what_its_weights_expect():
    found = preprocessing_of("timm:vit_tiny_patch16_224.augreg_in21k_ft_in1k", "DEFAULT")
    expected = Preprocessing(248, 224, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bicubic")
    assert found == expected
