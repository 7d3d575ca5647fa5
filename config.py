"""Every option of the project. One line each: its name, what it takes, its default, its meaning.

A new option is one new line here: the command line, its checks and `python main.py help` follow.
"""

from typing import Literal

from utils.options import (
    Fraction,
    ImageSize,
    InputPath,
    NotNegative,
    Options,
    PositiveFloat,
    PositiveInt,
    WholeNumber,
)

# A command, what it does, and the path that has to be there before it starts.
COMMANDS = {
    "prepare": ("get a data set and lay it out", None),
    "check": ("say whether data, model and training are sound, and what to do", "train_data_root"),
    "train": ("train a model, validating after each epoch", "train_data_root"),
    "val": ("measure a checkpoint on the val split of its own data", None),
    "test": ("write result.csv for unlabelled pictures", "test_data_root"),
    "help": ("show the commands and every option", None),
}


# Options that leave a run's result alone: --resume may change them without being asked twice.
FREE = """
    resume allow_changes save_minutes num_workers cache cache_root train_data_root test_data_root
    env visdom_port checks print_freq debug_file traceback debug_on_error checkpoint_root json
    result_file
"""


class DefaultConfig(Options):
    """The defaults, checked: `DefaultConfig(lr="1e-3").lr == 0.001`."""

    free_on_resume = frozenset(FREE.split())

    # Data
    dataset: str = "DogCat"  # a class of data/
    train_data_root: InputPath = "data/demo/train"  # folder with the labelled pictures
    test_data_root: InputPath = "data/demo/test1"  # folder with the pictures to classify
    image_size: ImageSize = 128  # pixels a side; smaller is faster, larger sees finer detail
    crop_scale: Fraction = 0.5  # smallest share of a picture that a training crop shows
    num_workers: WholeNumber | None = None  # loader processes; None: one a core, at most 8
    cache: Literal["auto", "none", "ram", "disk"] = "auto"  # kept pictures; auto: val's, in memory
    cache_root: str = "data/cache"  # folder for --cache=disk; delete it at will
    on_device: bool = False  # hold the pictures on the device and augment there: fast on a GPU

    # Model
    model: str = "SqueezeNet"  # a class of models/
    load_model_path: InputPath | None = None  # run folder or .pth; None for val, test: the newest
    pretrained: bool = False  # start from torchvision's ImageNet weights (downloads them once)
    dropout: Fraction = 0.1  # share of features dropped before the classifier, in training alone

    # Training
    max_epoch: PositiveInt = 12  # passes over the training pictures
    batch_size: PositiveInt = 32  # pictures a step
    accumulate: PositiveInt = 1  # parts a batch goes through in: more parts, less memory
    lr: PositiveFloat = 2e-3  # peak learning rate; divide it by 3 if the loss jumps
    schedule: Literal["one_cycle", "plateau"] = "one_cycle"  # how the learning rate goes
    warmup: Fraction = 0.15  # share of the run in which the learning rate rises
    lr_decay: Fraction = 0.5  # lr = lr * lr_decay after an epoch that lowers no val loss (plateau)
    weight_decay: Fraction = 0.05  # decoupled (AdamW); on weights, not on biases and norms
    clip_norm: PositiveFloat | None = 1.0  # longest gradient a step may take; None: any
    label_smoothing: Fraction = 0.0  # share of each label spread over all classes
    focal_gamma: NotNegative = 0.0  # focal loss: 2 looks at the hard pictures; 0 is cross-entropy
    balanced: bool = False  # weigh classes by 1 / their count, so that rare ones count as much
    mirror: bool = True  # at the end, in val and in test: the mean over a picture and its mirror
    seed: WholeNumber = 0  # same seed, same run, bit for bit

    # Going on
    resume: bool | InputPath = False  # go on with the newest run, or with the folder given
    allow_changes: bool = False  # let --resume take options that change the result
    save_minutes: PositiveFloat = 10.0  # minutes between two saves within an epoch

    # Machine
    use_gpu: bool = True  # where there is one
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"  # auto: bf16 where it is native
    deterministic: bool = False  # same bits on a GPU as well, at the price of speed

    # Watching
    env: str = "default"  # visdom environment
    visdom_port: PositiveInt = 8097  # where a visdom server may answer on this machine
    checks: Literal["off", "start", "always"] = "start"  # make no NaN step: first 20, or all
    print_freq: PositiveInt = 20  # steps between two points of the training curves
    debug_file: str | None = "/tmp/debug"  # touch it while a run goes on: ipdb opens in its loop
    traceback: bool = False  # show the whole traceback of a failure
    debug_on_error: bool = False  # open the debugger where a failure came from

    # Results
    checkpoint_root: str = "checkpoints"  # each run makes a folder of its own here
    json: bool = False  # check prints its findings for machines
    result_file: str = "result.csv"  # what test writes: id,label with label = P(last class)

    # Preparing data
    source: Literal["demo"] = "demo"  # demo: draws cats and dogs
    prepare_root: str | None = None  # folder to lay the set out in; None: data/<source>
    count: PositiveInt = 2000  # training pictures to draw (demo); a tenth more for test
