"""One encoder pass for both objectives beside the original's two, timed in turn in one process.

    python benchmarks/single_pass.py [--encoder ssamba] [--size nano] [--batch 32] [--frames 112] [--pairs 15]

Both steps hide the same number of patches, compute InfoNCE + 10 * MSE and take an AdamW step from waveforms on; the
two-pass step encodes once for each objective, each time under a mask of its own, as the original training loop does.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from tqdm import tqdm

from ssamba.audio import LogMel, samples_for
from ssamba.files import write_json
from ssamba.losses import info_nce, reconstruction_mse
from ssamba.masking import cluster_mask
from ssamba.models.encoder import SIZES, AudioEncoder
from ssamba.models.heads import MaskedPatchModel
from ssamba.training.runs import hardware


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="ssamba", choices=list(SIZES))
    parser.add_argument("--size", default="nano", choices=list(SIZES["ssamba"]))
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--frames", type=int, default=112)
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--out", type=Path, help="also write the times as JSON")
    given = parser.parse_args()
    torch.manual_seed(0)
    encoder = AudioEncoder(given.encoder, SIZES[given.encoder][given.size], 128, given.frames, 16, 16, 16, 16)
    model, log_mel = MaskedPatchModel(encoder), LogMel(16000, 128, -4.27, 4.57)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    waveform = 0.1 * torch.randn(given.batch, samples_for(given.frames, 16000))
    lengths = torch.full((given.batch,), waveform.shape[1])
    generator = torch.Generator().manual_seed(0)
    hidden = encoder.grid[0] * encoder.grid[1] // 2

    def mask() -> torch.Tensor:
        return cluster_mask(*encoder.grid, hidden, [generator] * given.batch)

    def single() -> torch.Tensor:
        said = model(log_mel(waveform, lengths), mask())
        contrast = info_nce(said.contrastive, said.target).loss
        return contrast + 10 * reconstruction_mse(said.reconstruction, said.target)

    def double() -> torch.Tensor:
        spectrogram = log_mel(waveform, lengths)
        first, second = model(spectrogram, mask()), model(spectrogram, mask())
        contrast = info_nce(first.contrastive, first.target).loss
        return contrast + 10 * reconstruction_mse(second.reconstruction, second.target)

    def seconds(loss: object) -> float:
        start = time.perf_counter()
        optimizer.zero_grad()
        loss().backward()  # type: ignore[operator]
        optimizer.step()
        return time.perf_counter() - start

    for step in (single, double):  # kernels are compiled and memory is taken before anything is timed
        seconds(step)
    pairs = [(seconds(single), seconds(double)) for _ in tqdm(range(given.pairs), unit="pair")]
    one, two = (statistics.median(times) for times in zip(*pairs, strict=True))
    ratio = statistics.median(b / a for a, b in pairs)
    result = {
        "encoder": given.encoder,
        "size": given.size,
        "batch": given.batch,
        "frames": given.frames,
        "single_pass_seconds": one,
        "two_pass_seconds": two,
        "ratio": ratio,
        "pairs": given.pairs,
        "hardware": hardware(),
    }
    print(json.dumps(result, indent=2))
    if given.out:
        write_json(given.out, result)


if __name__ == "__main__":
    main()
