"""The one table of settings: name, default, help, parser; the order is that of the documentation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hermes.config.parsing import (
    AUTO,
    choice,
    number,
    parse_conditions,
    parse_device,
    parse_directory,
    parse_header,
    parse_hosts,
    parse_modalities,
    parse_modality,
    parse_names,
    parse_or_none,
    parse_patch,
    parse_quotas,
    switch,
    whole,
)

STRATEGY_NAMES = (
    "uncertainty", "random", "foreground", "clasp", "coverage", "core-set", "hybrid", "disagreement", "first", "last",
)  # fmt: skip
"""The strategies of `hermes.strategies`, which this module does not import."""


@dataclass(frozen=True)
class Setting:
    """One row of the table.

    Attributes:
        name: the ``--conf`` key; a quantity has its unit in it.
        default: as one would write it on the command line.
        help: one sentence for a person who sets it.
        parse: text -> value; raises ValueError that says what was expected.
    """

    name: str
    default: str
    help: str
    parse: Callable[[str], Any]


SETTINGS: tuple[Setting, ...] = (
    Setting(
        "structures",
        "",
        "What the campaign labels, separated by commas; names the model does not know become new tasks; "
        "empty: all that the model knows.",
        parse_names,
    ),
    Setting(
        "labels_per_round",
        "5",
        "Training starts by itself after this many images with new labels; 0: only by hand.",
        whole(0, 100_000),
    ),
    Setting("model", "", "Directory of the model to begin with; empty: the starter model.", parse_directory),
    Setting(
        "campaign_dir",
        "",
        "Where the campaign keeps its database, cache and models; empty: `.hermes` in a folder of studies, "
        "a folder of its own in `~/.local/share/hermes` for a DICOMweb server.",
        parse_or_none,
    ),
    Setting(
        "strategy",
        "foreground",
        f"Which image is offered next: {', '.join(STRATEGY_NAMES)}; measured in docs/active-learning.md.",
        choice(*STRATEGY_NAMES),
    ),
    Setting(
        "modality",
        AUTO,
        "Modality of all images (CT, PET, T1, T2, cine), where the images themselves do not say it; "
        "auto: decided for each image.",
        parse_modality,
    ),
    Setting("device", AUTO, "Where the network runs: auto, cpu, cuda, cuda:0, ...", parse_device),
    Setting(
        "precision",
        AUTO,
        "Arithmetic of the network: fp32, bf16, or auto (bf16 on GPUs and CPUs that multiply it natively).",
        choice(AUTO, "fp32", "bf16"),
    ),
    Setting(
        "spacing_mm",
        "0",
        "Voxel size at which the network sees an image, 0.3 to 10; 0: the model's own.",
        number(0.3, 10, zero_is_none=True),
    ),
    Setting(
        "train_steps_per_round",
        "0",
        "Optimiser steps of a training round; 0: as many as the device and the number of labels suggest.",
        whole(1, 10_000_000, zero_is_none=True),
    ),
    Setting("train_batch_size", "2", "Patches per optimiser step.", whole(1, 1024)),
    Setting(
        "train_patch_voxels",
        AUTO,
        "Size z,y,x of a training patch, multiples of 16, such as 48,64,48; auto: fitted to the images.",
        parse_patch,
    ),
    Setting(
        "learning_rate",
        "0",
        "Peak learning rate of training; 0: the recipe's.",
        number(1e-8, 1, zero_is_none=True),
    ),
    Setting(
        "training_threads",
        "0",
        "CPU threads of the training process; 0: what torch takes.",
        whole(1, 1024, zero_is_none=True),
    ),
    Setting(
        "train_mode",
        "full",
        "What a round trains: full (all of the network), decoder (all but the encoder), or priors (the rows of new "
        "structures and nothing else).",
        choice("full", "decoder", "priors"),
    ),
    Setting(
        "replay",
        "1",
        "How often cases of earlier rounds are drawn beside those with new labels, 0 to 100; 1: as often "
        "(what is only rehearsed: half of the draws at most), "
        "0: new labels only.",
        number(0, 100),
    ),
    Setting(
        "distil",
        "2",
        "Weight of the loss that keeps what earlier versions say of structures without a (new) label, 0 to 100.",
        number(0, 100),
    ),
    Setting(
        "keep",
        "named",
        "What a round keeps beside what it learns: named (the structures of the campaign), or all (whatever the model "
        "knows, of other modalities too; a round then learns less, see docs/continual.md). Nothing is kept with distil=0, and "
        "train_mode=priors forgets nothing.",
        choice("named", "all"),
    ),
    Setting(
        "holdout_share",
        "0.2",
        "Part of the patients whose labels measure every candidate model and train none, 0 to 0.9; a patient is "
        "assigned once, when the first image comes; 0: none.",
        number(0, 0.9),
    ),
    Setting(
        "gate_task_margin",
        "0.02",
        "How much Dice a structure may lose on the hold-out before a candidate is refused, 0 to 1.",
        number(0, 1),
    ),
    Setting(
        "gate_margin",
        "0.005",
        "How much mean Dice a candidate may lose on the hold-out before it is refused, 0 to 1.",
        number(0, 1),
    ),
    Setting(
        "tensorboard",
        "false",
        "Whether rounds write curves and example pictures for TensorBoard, below `logs/tensorboard` of the campaign.",
        switch,
    ),
    Setting(
        "mlflow",
        "false",
        "Whether rounds write curves and example pictures for MLflow, in a SQLite store in `logs/mlflow` of the campaign.",
        switch,
    ),
    Setting(
        "window_overlap",
        "0.5",
        "Overlap of neighbouring windows in inference, as a part of the window, 0 to 0.9.",
        number(0, 0.9),
    ),
    Setting(
        "inference_memory_gib",
        "2.0",
        "Memory that inference may use for windows and accumulators, beside the network and the image.",
        number(0.05, 1024),
    ),
    Setting(
        "score_images_per_round",
        "64",
        "How many unlabelled images are scored after a model is published; 0: none.",
        whole(0, 1_000_000),
    ),
    Setting(
        "score_minutes_per_round",
        "0",
        "How long images are scored after a model is published, in minutes of inference; 0: until enough are.",
        number(0, 100_000),
    ),
    Setting(
        "score_storage_mib",
        "256",
        "How much the database may hold of what versions found in images; older versions are forgotten first.",
        number(1, 1_000_000),
    ),
    Setting(
        "prelabel",
        "false",
        "Whether the serving model labels waiting images ahead, as `original` labels that viewers open at once; "
        "they are made anew after a publication.",
        switch,
    ),
    Setting(
        "lease_minutes",
        "30",
        "How long an image that was offered to one annotator is not offered to another; 0: not at all.",
        number(0, 100_000),
    ),
    Setting(
        "labels_per_image",
        "1",
        "How many annotators label each image; with more than one their agreement is measured.",
        whole(1, 100),
    ),
    Setting(
        "required_structures",
        "",
        "What has to be annotated (drawn, or declared absent) before an image is done, separated by commas, or `all`; "
        "empty: an image with any label is done.",
        parse_names,
    ),
    Setting(
        "quotas",
        "",
        "In how many images structures are to be drawn, such as liver=50,pancreas=80; images that serve only full "
        "quotas come last.",
        parse_quotas,
    ),
    Setting(
        "round_hours",
        "0",
        "Training starts by itself so many hours after the last one began, when there is a new label; 0: not by time.",
        number(0, 100_000),
    ),
    Setting(
        "stop_dice",
        "0.95",
        "The report advises to stop when the last submissions agree with what the model offered at least as well, "
        "0 to 1.",
        number(0, 1),
    ),
    Setting("stop_submissions", "20", "How many last submissions `stop_dice` is about.", whole(1, 100_000)),
    Setting(
        "user_header",
        "",
        "Header in which a proxy names the annotator, such as X-Remote-User; empty: none is believed. Set it only "
        "behind a proxy that removes it from what clients send, since anybody can write it.",
        parse_header,
    ),
    Setting(
        "allowed_hosts",
        "",
        "Names by which browsers may address the server, beside localhost and 127.0.0.1, separated by commas; *: any. "
        "Empty: any, but with `make serve` on a loopback HOST (the default) none, so that web pages of others cannot come "
        "in by a name that points to this machine.",
        parse_hosts,
    ),
    Setting(
        "pacs_modalities",
        "CT,MR,PT",
        "Modalities of the series of a DICOMweb server that are images of the campaign.",
        parse_modalities,
    ),
    Setting(
        "pacs_filter",
        "",
        "Further conditions on the series of a DICOMweb server, QIDO attributes joined by &, such as "
        "StudyDate=20240101-&BodyPartExamined=ABDOMEN; empty: all.",
        parse_conditions,
    ),
    Setting(
        "pacs_refresh_seconds",
        "2",
        "How old the lists of a DICOMweb server may be when somebody asks, 0.1 to 3600.",
        number(0.1, 3600),
    ),
    Setting(
        "pacs_cache_gib",
        "50",
        "How much the downloaded series of a DICOMweb server may take on disk; those used longest ago go first.",
        number(0.01, 1_000_000),
    ),
    Setting(
        "pacs_upload_predictions",
        "false",
        "Whether predictions that are kept as labels (`original`) are stored in the PACS, too, marked AUTOMATIC.",
        switch,
    ),
    Setting("seed", "0", "Seed of everything random.", whole(0, 2**32 - 1)),
)
"""Every setting; the order is that of the documentation."""
