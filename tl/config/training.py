"""Keys of how a phase trains: the optimizer, the schedule, the objective, what an image becomes."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from tl.config.values import (
    ClassWeights,
    Decay,
    Fraction,
    Keys,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ProperFraction,
    Sampling,
    Shares,
    length,
)


class OptimizerConfig(Keys):
    name: Literal["sgd", "adamw"] = "sgd"
    """the optimizer"""
    lr: NonNegativeFloat = 0.01
    """base learning rate, at the top of the schedule"""
    momentum: Decay = 0.9
    """momentum of SGD"""
    nesterov: bool = False
    """Nesterov momentum for SGD"""
    betas: Annotated[list[Decay], length(2)] = [0.9, 0.999]
    """decay rates of AdamW's two moments"""
    weight_decay: NonNegativeFloat = 0.0
    """L2 penalty of SGD, decoupled weight decay of AdamW"""
    decay_norm_and_bias: bool = True
    """false: no weight decay for what has one dimension, biases and weights of normalisation"""
    layer_decay: ProperFraction = 1.0
    """factor of the learning rate for each stage towards the images: a stage that is `depth` stages
    before the head has lr * layer_decay ** depth"""
    head_factor: PositiveFloat = 1.0
    """the head's learning rate, and a bottleneck's, as a multiple of lr"""


class ScheduleConfig(Keys):
    name: Literal["constant", "step", "cosine", "poly", "inverse"] = "cosine"
    """how the learning rate falls over a phase"""
    warmup_steps: NonNegativeInt = 0
    """steps over which the rate rises linearly from zero"""
    warmup_epochs: NonNegativeFloat = 0.0
    """the same in epochs; the longer of the two counts"""
    step_epochs: PositiveInt = 7
    """`step`: epochs between two drops"""
    gamma: ProperFraction = 0.1
    """`step`: factor of each drop"""
    power: PositiveFloat = 1.0
    """`poly`: rate = (1 - progress) ** power; `inverse`, of domain adaptation, has no number: it is
    (1 + 10 progress) ** -0.75"""
    final: Fraction = 0.0
    """`cosine` and `poly`: fraction of the base rate left at the end"""


class EarlyStopping(Keys):
    patience: PositiveInt | None = None
    """end a phase, and begin the next one, after this many evaluations without an improvement of
    best.metric within the phase; null: train to its end"""
    min_delta: NonNegativeFloat = 0.0
    """an evaluation that is better by no more than this is no improvement"""


class BestConfig(Keys):
    metric: Literal[
        "auto",
        "val/accuracy",
        "val/loss",
        "val/macro_f1",
        "val/balanced_accuracy",
        "target/im",
        "target/snd",
        "target/entropy",
        "oracle/accuracy",
    ] = "auto"
    """by which the best model is chosen and early stopping decides; `auto`: val/accuracy, or with a
    target domain target/im, which needs no label of it (docs/domain_adaptation.md). With the same
    value lower loss, then higher accuracy, then the earlier one wins. oracle/accuracy looks at the
    target's labels: what it chooses is no fair result"""
    mode: Literal["auto", "max", "min"] = "auto"
    """whether more or less of it is better; `auto`: less of val/loss and target/entropy, more of
    the others"""


class Training(Keys):
    """How one phase trains. At the top level of a config: the defaults of every phase."""

    epochs: PositiveInt = 10
    """passes over the training data"""
    steps: PositiveInt | None = None
    """optimizer steps, in place of epochs: the one that is given later counts"""
    global_batch_size: PositiveInt = 32
    """images in one optimizer step, over all processes"""
    gradient_accumulation: PositiveInt = 1
    """micro-batches in which a global batch is computed, one after another, to save memory"""
    sampling: Sampling = "uniform"
    """`uniform`: each image once an epoch; `balanced`: each class as often; `weighted(p)` between
    them: a class of n images in proportion to n ** (1 - p); `domains`: each of several source
    domains as often. An epoch has as many images in each"""
    evaluate_every_steps: PositiveInt | None = None
    """steps between two evaluations, besides the one at the end; null: at the end of each epoch"""
    early_stopping: EarlyStopping = EarlyStopping()
    objective: str = "supervised"
    """what is minimised: supervised, l2_sp, delta, bss, co_tuning, lwf, or to adapt to a target
    dann, cdan, mdd, bsp, coral, dan, jan, mcc, cdan_mcc, afn, adabn, fixmatch, or shot without a
    source (docs/objectives.md says what each is), or package.module:name of your own"""
    objective_options: dict[str, Any] = {}
    """numbers of the objective, such as {alpha: 0.1}; docs/objectives.md lists them. They belong to
    the objective beside them: a phase with another objective does not take over the top level's"""
    label_smoothing: Decay = 0.0
    """share of each label that is spread over all classes"""
    mixup: NonNegativeFloat = 0.0
    """mix pairs of images and their labels in shares from Beta(mixup, mixup); 0: do not"""
    cutmix: NonNegativeFloat = 0.0
    """paste a box of one image of a pair into the other, its share of the area from Beta(cutmix,
    cutmix); 0: do not. With mixup as well, each pair gets one of the two"""
    class_weights: ClassWeights = "none"
    """weights of the classes in the loss, from the number of training images of each: `balanced`
    (1 / number), effective(beta) such as effective(0.999), or none"""
    focal: NonNegativeFloat = 0.0
    """gamma of the focal loss, which gives images that are easy already less weight; 0: none"""
    # Without it, recipes for networks with BatchNorm break those without: SqueezeNet fine-tuned on
    # 244 images at lr 0.001 has gradient norms of 180 to 340 in its first steps, after which its
    # ReLUs are dead. Validation accuracy 0.54, 0.46, 0.46 without (seeds 0, 1, 2), 0.90, 0.90,
    # 0.89 with it.
    clip_norm: PositiveFloat | None = 1.0
    """largest norm of the gradient of all trained parameters together; null: no limit"""
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """evaluate, keep and hand on to the next phase an exponential moving average of what trains,
    with this decay (such as 0.999); null: none"""
    batch_norm: Literal["train", "frozen", "sync"] = "train"
    """`frozen`: BatchNorm keeps its statistics also where its layer trains; `sync`: it takes them
    over the images of all processes, so that their number does not matter"""
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    augment: Literal["none", "flip", "standard", "trivial"] = "standard"
    """`none`: the view of validation; `flip`: that, flipped at random; `standard`: random resized
    crop and flip; `trivial`: standard and TrivialAugment"""
    crop_scale: Shares = [0.08, 1.0]
    """share of the image's area that a random crop covers, from and to"""

    @property
    def mixes(self) -> bool:
        """Whether images are mixed in pairs."""
        return self.mixup > 0 or self.cutmix > 0


class Phase(Training):
    """One phase of a run: what trains, for how long, and how."""

    name: Annotated[str, Field(pattern=r"^[\w.-]+$")]
    """what the records call this phase"""
    train: str
    """which part trains: full, head, last_stages(n), from_stage(name), freeze_embed,
    freeze_head, surgical(name), regex(pattern), norm, bias, lora(r), lora(r, pattern), or
    package.module:name"""
