"""Every option of train, val and test. One line each: name, type, default, meaning.

A new option is one new line here: the command line, its validation and `python main.py help`
follow. Other commands add options of their own in utils/commands/.
"""

from typing import Literal

from utils.options import (
    Augmentations,
    Fold,
    Fraction,
    ImageSize,
    InputPath,
    NotNegative,
    Options,
    PositiveFloat,
    PositiveInt,
    WholeNumber,
)

# The commands of the core: what each does, and the option whose path must exist before it starts.
COMMANDS = {
    "train": ("Train a model, validating after each epoch.", "train_data_root"),
    "val": ("Measure a checkpoint on the val split of its own data.", None),
    "test": ("Write result.csv for unlabelled pictures.", "test_data_root"),
    "help": ("Show the commands and every option; help COMMAND shows what a command adds.", None),
}

# Options that do not change the result of a run: --resume takes them without --allow-changes.
CHANGEABLE_ON_RESUME = """
    save_minutes num_workers cache cache_root train_data_root test_data_root env visdom_port checks
    print_freq histograms debug_file traceback debug_on_error checkpoint_root result_file
    stop_after max_minutes profile detect_anomaly
"""


class DefaultConfig(Options):
    """The defaults. `DefaultConfig(lr="1e-3").lr == 0.001`: values are validated and converted."""

    changeable_on_resume = frozenset(CHANGEABLE_ON_RESUME.split())

    # Data
    dataset: str = "DogCat"  # a class of data/; Pictures is enough for folders and lists
    train_data_root: InputPath = "data/demo/train"  # labelled pictures: a folder or a list
    test_data_root: InputPath = "data/demo/test1"  # pictures to classify: a folder or a list
    layout: Literal["auto", "flat", "folders", "splits", "csv"] = "auto"  # auto finds it by looking
    val_share: Fraction = 0.3  # share of each class that is val, unless the data say who is
    fold: Fold | None = None  # cross-validation: 2/5 makes the second fifth val
    image_size: ImageSize = 128  # pixels a side; smaller is faster, larger shows finer detail
    crop_scale: Fraction = 0.5  # smallest share of a picture's area that a training crop shows
    augment: Augmentations | None = None  # more augmentation, as trivialaugment,cutmix
    oversample: bool = False  # show classes equally often: pictures of rare ones are repeated
    on_bad_image: Literal["skip", "stop"] = "skip"  # skip: leave it out, if less than 1 % are bad
    num_workers: WholeNumber | None = None  # loader processes; None: one per core, at most 8
    cache: Literal["auto", "none", "ram", "disk"] = "auto"  # where decoded pictures are kept
    cache_root: str = "data/cache"  # folder of --cache=disk; it may be deleted at any time

    # Model
    model: str = "SqueezeNet"  # a class of models/, or torchvision/NAME, as torchvision/resnet18
    load_model_path: InputPath | None = None  # run folder or .pth; None: val, test take the newest
    pretrained: bool = False  # start from torchvision's ImageNet weights (downloads them once)
    freeze: WholeNumber = 0  # epochs at the start in which only the head, the last layer, learns
    backbone_lr: Fraction = 1.0  # learning rate of all but the head, as a share of lr
    compile: bool = False  # compile the model by torch.compile; for GPUs, slower on a CPU
    dropout: Fraction = 0.1  # share of features dropped before the classifier, in training only

    # Training
    config: InputPath | None = None  # a file of options, as RUN/config.json; --options win over it
    max_epoch: PositiveInt = 40  # passes over the training pictures
    stop_after: PositiveInt | None = None  # end after so many epochs without a lower val loss
    max_minutes: PositiveFloat | None = None  # begin no epoch that would probably end later
    limit_batches: PositiveInt | None = None  # of each pass, for a trial run
    dry_run: bool = False  # try every part of a run: one epoch of 10 batches; nothing is kept
    batch_size: PositiveInt = 64  # pictures per step
    accumulate: PositiveInt = 1  # parts of a batch computed one by one, which saves memory
    optimizer: Literal["muon", "adamw"] = "muon"  # muon learns faster; adamw suits fine-tuning
    lr: PositiveFloat = 2e-3  # highest learning rate; divide it by 3 if the loss jumps
    schedule: Literal["one_cycle", "plateau"] = "one_cycle"  # how the learning rate changes
    warmup: Fraction = 0.15  # share of the run in which the learning rate rises
    lr_decay: Fraction = 0.5  # plateau: lr * lr_decay after an epoch without a lower val loss
    weight_decay: Fraction = 0.05  # decoupled from the gradient; not for biases and norms
    clip_norm: PositiveFloat | None = 1.0  # a gradient of larger norm is scaled down to it
    label_smoothing: Fraction = 0.0  # share of each label that is spread over all classes
    focal_gamma: NotNegative = 0.0  # focal loss: 2 stresses hard pictures; 0 is cross-entropy
    balanced: bool = False  # weigh classes by 1 / their count, so that rare ones count as much
    best_metric: str = "accuracy"  # val metric that decides which epoch is kept in best.pth
    mirror: bool = True  # after training: mean over each picture and its mirror image
    calibrate: bool = False  # after training: fit the temperature of the probabilities on val
    sync_bn: bool = False  # torchrun: BatchNorm over the pictures of all ranks, not of each
    seed: WholeNumber = 0  # same seed, same run, bit for bit (GPU: with --deterministic)

    # Resuming
    resume: bool | InputPath = False  # go on with the newest run, or with the folder given
    allow_changes: bool = False  # let --resume take options that change the result
    save_minutes: PositiveFloat = 10.0  # minutes between two saves within an epoch

    # Machine
    use_gpu: bool = True  # if there is one
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"  # auto: bf16 if native, else fp32
    deterministic: bool = False  # same bits on a GPU as well; slower

    # Watching
    env: str = "default"  # visdom environment
    visdom_port: PositiveInt = 8097  # port of a visdom server on this machine, if there is one
    checks: Literal["off", "start", "always"] = "start"  # stop at NaN or inf; start: first 20 steps
    print_freq: PositiveInt = 20  # steps between two points of the training curves
    histograms: bool = False  # show weights and gradients by layer after each epoch
    profile: bool = False  # write a trace of some steps, and what took the most time in them
    detect_anomaly: bool = False  # name the operation whose gradient is NaN; slow
    debug_file: str | None = "/tmp/debug"  # create it while a run goes on: ipdb opens in its loop
    traceback: bool = False  # show the whole traceback of a failure
    debug_on_error: bool = False  # open the debugger where a failure happened

    # Results
    checkpoint_root: str = "checkpoints"  # each run makes its own folder in here
    result_file: str = "result.csv"  # written by test: the probabilities of each picture
