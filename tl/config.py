"""The keys of a run: what they are called, their types, their defaults and what they mean.

Reading them from a file, the environment and the command line is `tl.arguments`. The string
below each key is what ``--help`` shows. Nothing here imports torch, so a mistake in a config is
reported in a fraction of a second.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    WrapValidator,
    model_serializer,
    model_validator,
)

from tl.errors import did_you_mean

# What a C library takes for a whole number.
LARGEST_INT = 2**63 - 1
PositiveInt = Annotated[int, Field(gt=0, le=LARGEST_INT)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeInt = Annotated[int, Field(ge=0, le=LARGEST_INT)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
ProperFraction = Annotated[float, Field(gt=0, le=1)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Byte = Annotated[int, Field(ge=0, le=255)]


def _class_name(value: Any, check: Callable[[Any], str | int]) -> str | int:
    try:
        return check(value)
    except ValidationError:  # of a union: one error for each member, at a place that is no key
        raise ValueError("must be a name or a whole number") from None


def _colour(value: Any, check: Callable[[Any], list[int]]) -> list[int]:
    try:
        return check(value)
    except ValidationError:  # of the list, or of one of its numbers
        raise ValueError("must be three numbers from 0 to 255, as [255, 255, 255]") from None


ClassName = Annotated[str | int, WrapValidator(_class_name)]


def _channels(value: Any) -> Any:
    if value not in (1, 3) or type(value) is not int:  # true is 1 to Python
        raise ValueError("must be 1 or 3")
    return value


Channels = Annotated[Literal[1, 3], BeforeValidator(_channels)]


def _from_to(scale: list[float]) -> list[float]:
    if scale[0] > scale[1]:
        raise ValueError("must go from the smaller to the larger")
    return scale


UNITS = r"(?:([0-9]+)d)?(?:([0-9]+)h)?(?:([0-9]+)m)?(?:([0-9]+)s)?"
CLOCK = r"(?:([0-9]+)-)?([0-9]+):([0-9]{2}):([0-9]{2})"
BETA = r"0(?:\.[0-9]{1,15})?"
POLICY = r"stop|(skip|rollback)\([1-9][0-9]*\)"
SAMPLING = r"uniform|balanced|domains|weighted\((?:0?\.[0-9]{1,9}|0|1|[01]\.0{0,9})\)"


def _pattern(*alternatives: str) -> Any:
    """For editors; the validator beside it says more."""
    return Field(json_schema_extra={"pattern": f"^({'|'.join(alternatives)})$"})


def seconds_of(duration: str) -> float:
    """Seconds in ``"90s"``, ``"1h30m"``, or a time as Slurm writes it: ``"1-12:00:00"``.

    Raises:
        ValueError: it is none of these, or no time at all.
    """
    duration = duration if isinstance(duration, str) else ""  # of YAML, where 90 is a number
    found = re.fullmatch(UNITS, duration) or re.fullmatch(CLOCK, duration)
    days, hours, minutes, seconds = (int(n or 0) for n in found.groups()) if found else (0,) * 4
    total = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    if total == 0:
        raise ValueError("must be a time such as 90s, 1h30m or 1-12:00:00")
    return float(total)


def _duration(text: str) -> str:
    seconds_of(text)
    return text


def _time_limit(text: str) -> str:
    return text if text == "none" else _duration(text)


Duration = Annotated[str, BeforeValidator(_duration), _pattern(UNITS, CLOCK)]
TimeLimit = Annotated[str, BeforeValidator(_time_limit), _pattern(UNITS, CLOCK, "none")]


def _policy(text: str) -> str:
    if not re.fullmatch(POLICY, text):
        raise ValueError("must be stop, skip(n) or rollback(n) with n of 1 or more")
    return text


def _class_weights(text: str) -> str:
    parse_class_weights(text)
    return text


def parse_class_weights(text: str) -> tuple[str, float]:
    """The name and beta of ``none``, ``balanced`` or ``effective(0.999)``; beta is 0 without one.

    Raises:
        ValueError: it is none of these, or beta is not from 0 to below 1.
    """
    name, _, beta = text.removesuffix(")").partition("(")
    if text in ("none", "balanced"):
        return text, 0.0
    if name == "effective" and text.endswith(")") and re.fullmatch(BETA, beta):
        return name, float(beta)
    raise ValueError("must be none, balanced or effective(beta) with beta from 0 to below 1")


ClassWeights = Annotated[
    str, AfterValidator(_class_weights), _pattern("none|balanced", rf"effective\({BETA}\)")
]
NonfinitePolicy = Annotated[str, AfterValidator(_policy), _pattern(POLICY)]


def _sampling(text: str) -> str:
    if not re.fullmatch(SAMPLING, text):
        near = did_you_mean(text, ["uniform", "balanced", "domains", "weighted(0.5)"])
        kinds = "uniform, balanced, domains or weighted(p) with p from 0 to 1"
        raise ValueError(f"must be {kinds}.{near}")
    return text


Sampling = Annotated[str, AfterValidator(_sampling), _pattern(SAMPLING)]


def _length(n: int) -> Any:
    return Field(min_length=n, max_length=n)


class Keys(BaseModel):
    """A group of keys. Unknown ones are errors; strings are not taken for numbers."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True
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
    betas: Annotated[list[Decay], _length(2)] = [0.9, 0.999]
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
    crop_scale: Annotated[list[ProperFraction], _length(2), AfterValidator(_from_to)] = [0.08, 1.0]
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


class DataConfig(Keys):
    source: str = "auto"
    """`folder`, `digits`, `torchvision:NAME` or package.module:name; `auto`: `folder` if
    data.root is given, `digits` if not"""
    root: str | None = None
    """`folder`: the folder with train/ and val/, or with one folder for each class.
    `torchvision:`: where the files are"""
    source_root: str | None = None
    """domain adaptation: the folder of the labelled domain, another name of data.root"""
    target_root: str | None = None
    """domain adaptation: the folder of the domain without labels. Class folders in it, if there are
    any, are for reporting alone"""
    source_domains: Annotated[list[ClassName], Field(min_length=1)] | None = None
    """in place of source_root: names of folders in data.root, each a labelled domain"""
    target_domain: ClassName | None = None
    """in place of target_root: the name of a folder in data.root"""
    target_labels: Literal["auto", "none"] = "auto"
    """`auto`: by the names of class folders, where the target has such; `none`: it has none"""
    max_target: PositiveInt | None = None
    """keep this many images of the target, chosen by the seed"""
    val_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """share of each class that is held out where the data has no validation part"""
    classes: list[ClassName] | None = None
    """keep these classes only, in this order"""
    train_per_class: PositiveInt | None = None
    """keep this many training images of each class, chosen by the seed"""
    max_train: PositiveInt | None = None
    """keep this many training images, chosen by the seed"""
    max_val: PositiveInt | None = None
    """keep this many validation images, chosen by the seed"""
    image_size: PositiveInt | None = None
    """side of the network's input in pixels; null: what the weights were trained with"""
    extensions: list[str] = [
        ".jpg",
        ".jpeg",
        ".png",
        ".ppm",
        ".bmp",
        ".pgm",
        ".tif",
        ".tiff",
        ".webp",
    ]
    """`folder`: files that count as images; what else lies there is counted and named"""
    bad_images: Literal["error", "skip"] = "error"
    """an image that cannot be decoded ends the run, or is left out and named as its epoch ends"""
    max_bad_images: NonNegativeInt = 100
    """`skip`: more bad images than this end the run"""
    background: Annotated[list[Byte], _length(3), WrapValidator(_colour)] = [255, 255, 255]
    """RGB colour behind transparent pixels"""
    decode: Literal["fast", "exact"] = "fast"
    """`fast`: a JPEG at least twice as large as the view needs it is decoded at a half, a quarter
    or an eighth of its size, which may move a colour by a few of its 255 levels; `exact`: always
    at its own size, as torchvision does. Other images are the same in both"""
    channels: Channels | None = None
    """1: grey, 3: RGB; null: as the weights were trained. The network's first convolution is
    adapted: for grey its kernels are summed, so a grey image gives what its RGB copy gives"""
    workers: Annotated[int, Field(ge=0, le=1024)] | None = None
    """loader processes for each training process; null: from the cores of the node"""

    @model_validator(mode="after")
    def _check(self) -> DataConfig:
        if self.source_root is not None and self.root is not None:
            raise ValueError("give either root or source_root, which are the same")
        if self.source_domains is not None and self.source_root is not None:
            raise ValueError("give either source_root or source_domains")
        if self.target_domain is not None and self.target_root is not None:
            raise ValueError("give either target_root or target_domain")
        named = self.source_domains is not None or self.target_domain is not None
        if named and self.root is None:
            raise ValueError("source_domains and target_domain are folders in root: give root")
        if self.source_domains is None and self.target_domain is not None:
            raise ValueError("give source_domains with target_domain, as both are folders in root")
        return self

    @property
    def labelled_root(self) -> str | None:
        """The folder of what is labelled, by either of its names."""
        return self.root if self.source_root is None else self.source_root

    @property
    def has_target(self) -> bool:
        """Whether there is a domain to adapt to."""
        return self.target_root is not None or self.target_domain is not None

    @property
    def has_source(self) -> bool:
        """Whether there is anything labelled."""
        return self.labelled_root is not None or self.source != "auto" or not self.has_target


class GraftConfig(Keys):
    """What is copied from another checkpoint: a part by its name, or names that match."""

    weights: str
    """a .pth or .safetensors file, or a run's folder"""
    weights_key: str | None = None
    """where in the file, as model.weights_key"""
    from_: str | None = Field(None, alias="from")
    """the part of the file: all names below this one, as layer1; of a run also a stage"""
    to: str | None = None
    """the part of the network that it becomes: a name or a stage; null: of the same name"""
    match: str | None = None
    """in place of from: a regular expression for whole names in the file"""
    rename: str | None = None
    r"""what a name that matches becomes, with \1 for the first group; null: the same name"""
    on_mismatch: Literal["error", "skip"] = "error"
    """a tensor of another shape ends the run, or is left out and named"""

    @model_validator(mode="after")
    def _check(self) -> GraftConfig:
        if (self.from_ is None) == (self.match is None):
            raise ValueError("a graft takes either from or match")
        if self.from_ is None and self.to is not None:
            raise ValueError("a graft takes to with from, and rename with match")
        if self.match is None and self.rename is not None:
            raise ValueError("a graft takes rename with match, and to with from")
        if self.match is not None:
            try:
                re.compile(self.match).sub(self.rename or "", "")  # groups that there are not, too
            except (re.error, IndexError) as error:
                raise ValueError(f"match and rename are no regular expression: {error}") from None
        return self

    @model_serializer
    def _as_given(self) -> dict[str, Any]:
        return {key.rstrip("_"): getattr(self, key) for key in type(self).model_fields}


class ReuseConfig(Keys):
    stages: PositiveInt | None = None
    """keep so many of the network's first stages, under a new linear head; null: all"""
    upto: str | None = None
    """the same by the name of the last stage that is kept, such as layer2"""
    graft: list[GraftConfig] = []
    """copy parts of other checkpoints into the network, one after another, each as
    {weights: FILE, from: layer1, to: layer1} or {weights: FILE, match: REGEX, rename: NAME}"""

    @model_validator(mode="after")
    def _check(self) -> ReuseConfig:
        if self.stages is not None and self.upto is not None:
            raise ValueError("give either stages or upto")
        return self


class ModelConfig(Keys):
    name: str = "resnet18"
    """a classification architecture of torchvision, or timm:NAME"""
    weights: str | None = "DEFAULT"
    """a torchvision weights name, a .pth or .safetensors file, a run's folder; null: random"""
    weights_key: str | None = None
    """where in a weights file: teacher, model_ema, …; null: at the top, state_dict or model"""
    head: Literal["auto", "new", "keep", "classes"] = "auto"
    """`keep` the weights' own classification layer; `auto`: where its classes are the task's;
    `classes`: start each class that the weights know from their row of it"""
    head_classes: dict[str, ClassName] | None = None
    """what the weights call the task's classes, as {ants: ant, bees: 309}: a name of theirs, or
    the number of a row; needs head=classes"""
    bottleneck: PositiveInt | None = None
    """width of a bottleneck (linear, BatchNorm, ReLU) between the pooled features and a linear
    head; null: as the weights have, so none but for those of a run with one"""
    reuse: ReuseConfig = ReuseConfig()

    @model_validator(mode="after")
    def _check(self) -> ModelConfig:
        if self.head_classes is not None and self.head != "classes":
            raise ValueError("head_classes needs head: classes")
        if self.bottleneck is not None and self.head == "classes":
            raise ValueError("head: classes takes rows of a head that a bottleneck replaces")
        return self


class WandbConfig(Keys):
    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    """`auto`: WANDB_MODE if set; else online with a key, offline without one"""
    project: str = "transfer-launcher"
    """project; WANDB_PROJECT goes before the default"""
    entity: str | None = None
    """team or user"""
    name: str | None = None
    """name of the run; null: the last part of run_dir"""
    group: str | None = None
    """group of runs that belong together"""
    tags: list[str] = []
    """tags of the run"""


class TrackingConfig(Keys):
    log_every: PositiveInt = 10
    """steps between two lines of training metrics"""
    trackers: list[str] = ["jsonl", "wandb", "console"]
    """where metrics go: names, or package.module:name of your own"""
    wandb: WandbConfig = WandbConfig()


class CacheConfig(Keys):
    features: bool = True
    """keep what the frozen prefix makes of each image, where it always gets the same view of it"""
    views: PositiveInt | None = None
    """augment each training image of a phase with a frozen prefix in so many ways, which epochs
    take in turn and whose features can be kept; null: in another way in every epoch"""
    max_bytes: NonNegativeInt = 20_000_000_000
    """bytes of features on the disk; the least recently used make room"""
    folder: str | None = None
    """where; null: transfer-launcher in $XDG_CACHE_HOME or ~/.cache"""


class CheckpointConfig(Keys):
    every_steps: PositiveInt | None = None
    """steps between two checkpoints, besides those after each evaluation"""
    every_minutes: PositiveFloat | None = None
    """minutes from one checkpoint to the next, at most"""
    keep: PositiveInt = 2
    """checkpoints that stay"""


class Config(Training):
    """A run."""

    run_dir: str | None = None
    """folder of everything the run leaves; null: a new one below runs/"""
    seed: NonNegativeInt = 0
    """seed of the new weights, the order of the data, its augmentation and its splits"""
    strategy: str | None = "head"
    """short name of a list of phases; see also phases"""
    phases: Annotated[list[Phase], Field(min_length=1)] | None = None
    """the list of phases spelled out, in place of a strategy; each takes the training keys
    above, `name` and `train`"""
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    """`auto`: what the launcher says, else bf16 or fp16 where the GPU or CPU computes in it"""
    tf32: bool = True
    """let a GPU round the factors of float32 products to 10 bits, several times as fast"""
    compile: bool = False
    """compile each phase's forward and backward pass (torch.compile): a minute at first, faster
    steps after it"""
    num_processes: PositiveInt | None = None
    """refuse to run on any other number of processes"""
    threads: Annotated[int, Field(gt=0, le=1024)] | None = None
    """CPU threads of each process; null: the cores of the node, divided"""
    time_limit: TimeLimit | None = None
    """stop with a checkpoint before this much time is over, as 90s, 1h30m or 1-12:00:00; null:
    Slurm's limit, if Slurm runs it; none: no limit"""
    hang_timeout: Duration = "10m"
    """end the run, with stacks and the rank named, if no process gets on for so long"""
    nonfinite: NonfinitePolicy = "stop"
    """a step whose loss or gradient is NaN or infinite moves nothing. `stop`: it ends the run;
    `skip(n)`: it is left out, n times at most; `rollback(n)`: with all since the checkpoint"""
    disk_errors: Literal["stop", "continue"] = "stop"
    """a full disk ends the run, or training goes on and what could not be written is said"""
    best: BestConfig = BestConfig()
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    tracking: TrackingConfig = TrackingConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    cache: CacheConfig = CacheConfig()

    @model_validator(mode="after")
    def _check(self) -> Config:
        if (self.strategy is None) == (self.phases is None):
            raise ValueError("give either strategy or phases")
        return self

    @property
    def chosen_best(self) -> BestConfig:
        """`best`, with the metric that ``auto`` stands for in this run."""
        if self.best.metric != "auto":
            return self.best
        metric = "target/im" if self.data.has_target else "val/accuracy"
        return self.best.model_copy(update={"metric": metric})
