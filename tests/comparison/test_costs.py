"""Multiply-adds beside their formulas, and what is made of a run's record."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ssamba.comparison.costs import Costs, mean_costs, model_macs, run_costs
from ssamba.comparison.runs import Run, read_run
from ssamba.models.settings import read_config

CLIP = {
    "num_mel_bins": 128,
    "max_length": 1024,
    "fshape": 16,
    "tshape": 16,
    "frequency_stride": 16,
    "time_stride": 16,
    "patch_order": "frequency",
}
PATCHES, PIXELS = 512, 256


def test_a_transformer_is_its_products_and_its_attention() -> None:
    width, layers, tokens = 192, 3, PATCHES + 2
    config = {
        "model_type": "ssast",
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": 3,
        "layer_norm_eps": 1e-6,
        **CLIP,
    }
    products, attention = tokens * 12 * width**2, 2 * tokens**2 * width
    assert model_macs(config) == PATCHES * PIXELS * width + layers * (products + attention)
    shorter = 256 + 2  # tokens of half as long clips
    halved = layers * (shorter * 12 * width**2 + 2 * shorter**2 * width)
    assert model_macs(config, 512) == PATCHES // 2 * PIXELS * width + halved


@pytest.mark.parametrize(("directions", "family"), [(2, "ssamba"), (1, "aum")])
def test_a_scan_counts_four_for_each_state(directions: int, family: str) -> None:
    width, states, layers, tokens, taps, rank = 96, 8, 2, PATCHES + 1, 4, 6
    inner = 2 * width
    own = (
        {"residual": "plain", "layer_norm_eps": 1e-5}
        if family == "ssamba"
        else {"scan_layout": "fo_fo", "rms_norm_eps": 1e-5}
    )
    config = {
        "model_type": family,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "state_size": states,
        "expand": 2,
        "conv_kernel": taps,
        **own,
        **CLIP,
    }
    projections = 2 * inner * width + inner * width
    each = inner * taps + inner * (rank + 2 * states) + rank * inner + 4 * inner * states
    assert model_macs(config) == PATCHES * PIXELS * width + layers * tokens * (projections + directions * each)


def test_a_head_of_mamba_2_counts_three_for_each_state() -> None:
    width, states, layers, tokens, taps, heads = 96, 8, 2, PATCHES + 1, 4, 6
    inner, convolved = 2 * width, 2 * width + 4 * states
    config = {
        "model_type": "ssd",
        "hidden_size": width,
        "num_hidden_layers": layers,
        "state_size": states,
        "expand": 2,
        "head_dim": inner // heads,
        "conv_kernel": taps,
        "layer_norm_eps": 1e-5,
        **CLIP,
    }
    projections = width * (inner + convolved + 2 * heads) + inner * width
    each = projections + convolved * taps + 2 * 3 * inner * states
    assert model_macs(config) == PATCHES * PIXELS * width + layers * tokens * each


def test_an_lstm_is_its_products_in_both_directions() -> None:
    width, cells, layers, tokens = 96, 40, 2, PATCHES + 1
    config = {
        "model_type": "bilstm",
        "hidden_size": width,
        "num_hidden_layers": layers,
        "state_size": cells,
        "layer_norm_eps": 1e-5,
        **CLIP,
    }
    each = 2 * 4 * cells * (width + cells) + 2 * cells * width
    assert model_macs(config) == PATCHES * PIXELS * width + layers * tokens * each


def test_a_conformer_is_its_products_attention_and_convolutions() -> None:
    width, layers, taps = 96, 2, 31
    config = {
        "model_type": "conformer",
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": 3,
        "intermediate_size": 4 * width,
        "conv_depthwise_kernel_size": taps,
        **CLIP,
    }
    tokens = PATCHES + 1
    feed_forwards, attention, convolution = 4 * width * 4 * width, 4 * width**2, 3 * width**2 + taps * width
    each = tokens * (feed_forwards + attention + convolution) + 2 * tokens**2 * width
    assert model_macs(config) == PATCHES * PIXELS * width + layers * each


@pytest.mark.parametrize("words", [[], ["task.pooling=attentive"], ["task.hop_ms=320", "data.short=pad"]])
def test_the_head_is_counted(words: list[str], finetuned: Callable[[str], Path]) -> None:
    config = read_config(finetuned("ssast"))
    encoder = {name: value for name, value in config.items() if name not in ("id2label", "label2id")}
    if words:
        config |= {"pooling": "attentive"} if "pooling" in words[0] else {"hop_columns": 2}
    # 4 classes by means and deviations of 8 rows, of each clip or each of its two hops.
    linear = 2 * 8 * 96 * 4 * (2 if "hop_columns" in config else 1)
    assert 0 <= model_macs(config) - model_macs(encoder) - linear <= 8 * 96 * (128 * 4 + 8 * 4)


# Runs


def test_what_a_run_cost(make_run: Callable[..., Path], finetuned: Callable[[str], Path]) -> None:
    plain = read_run(finetuned("ssast"))
    macs = model_macs(read_config(finetuned("ssast")))

    def costs(origin: Any, recipe: dict[str, Any], **record: Any) -> Costs:
        run = Run(plain.place, {**plain.recipe, **recipe}, {**plain.record, "origin": origin, **record}, plain.folder)
        return run_costs(run, {})

    scratch = costs(None, {"model.pretrained": None, "data.batch_size": 8}, steps=10)
    assert scratch.macs == macs and scratch.training_macs == 3 * macs * 10 * 8 and scratch.pretraining_hours == 0
    frozen = costs(None, {"model.pretrained": None, "task.freeze_encoder": True, "data.batch_size": 8}, steps=10)
    assert frozen.training_macs == macs * 10 * 8
    whole, head_first = (
        costs(plain.record["origin"], {"task.freeze_steps": first, "data.batch_size": 8}, steps=10).training_macs
        for first in (0, 4)
    )
    assert whole is not None and head_first == whole - 2 * macs * 4 * 8
    unknown = costs(None, {"model.pretrained": "somewhere"})
    assert unknown.training_macs is None and unknown.pretraining_hours is None and unknown.macs == macs
    origin = {**plain.record["origin"], "training_seconds": 7200.0}
    assert costs(origin, {}).pretraining_hours == 2
    origin["recipe"] = {"audio.max_length": "long"}  # of a record that somebody wrote
    assert costs(origin, {}).training_macs is None
    memory = {"process": 7, "GPU 0": 5, "GPU 1": 6}
    assert costs(None, {}, peak_memory_bytes=memory, energy_joules=3.5)[3:7:3] == (6, 3.5)
    assert costs(None, {}, peak_memory_bytes={"process": 7, "GPU 0": 0}).peak_memory_bytes == 7
    rates = sorted(row["samples_per_second"] for row in plain.history if "samples_per_second" in row)
    assert scratch.clips_per_second == pytest.approx((rates[1] + rates[2]) / 2)


def test_groups_have_the_mean_of_what_is_known_of_all() -> None:
    first = Costs(10, 100, 5.0, 7, 1.0, 0.0, None, 4.0)
    second = Costs(10, 100, 6.0, 9, 2.0, 0.0, 3.0, None)
    assert mean_costs([first, second]) == Costs(10, 100, 5.5, 9, 1.5, 0.0, None, None)
