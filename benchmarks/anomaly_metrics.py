"""Average precision of anomaly scores: our histogram against exact peers, and a whole test set in constant memory.

    python benchmarks/anomaly_metrics.py                              all three parts, 1.4e9 streamed pixels
    python benchmarks/anomaly_metrics.py --pixels 100000000           a shorter stream

1. `--pixels` synthetic scores (StreetHazards' test set has 1.4e9) in pictures of 1280x720, one update each: time,
   and memory that the process needed beyond what it had before. Making the scores is not timed.
2. One positive among 1e8 pixels: value, bound and the true value.
3. 20 million scores at once, 1 % positive: time of our update and aupr() (median of three), of scikit-learn's
   average_precision_score, of torchmetrics' exact BinaryAveragePrecision and of nothing but torch.sort, all in this
   one run; then the certified bound and the true error, scikit-learn being the truth, on four kinds of scores.
"""

import resource
import statistics
import sys
import time
from pathlib import Path

import torch
from sklearn.metrics import average_precision_score
from torchmetrics.classification import BinaryAveragePrecision

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import cli
from anomaly.histogram import ScoreHistogram

SIZE = (720, 1280)
RARE_PIXELS, RARE_SCORE = 100_000_000, 4.3
KINDS = {  # from normal variates that are higher by 4/3 where positive
    "max logit": lambda normal: -8 + 3 * normal,
    "energy": lambda normal: -torch.nn.functional.softplus(6 - 4 * normal),
    "probability": lambda normal: torch.sigmoid(2 * normal - 3),
    "offset 1000": lambda normal: 1000 + 3 * normal,
}


def draw(count, share, kind, generator):
    """Continuous scores (count,) float32 of a kind, and positives (count,) bool, about `share` of them."""
    positives = torch.rand(count, generator=generator) < share
    normal = torch.randn(count, generator=generator).add_(positives, alpha=4 / 3)
    return KINDS[kind](normal), positives


def timed(function):
    """(seconds, result)."""
    start = time.perf_counter()
    result = function()
    return time.perf_counter() - start, result


def peak_megabytes():
    """The most memory this process ever held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def pictures(drawn, pixels, generator):
    """Scores (720, 1280) and positives of pictures that hold `pixels`: the drawn ones, shifted a bit each time."""
    height, width = SIZE
    for number in range(-(-pixels // (height * width))):
        scores, positives = drawn[number % len(drawn)]
        yield (scores + 0.1 * torch.randn(1, generator=generator)).view(SIZE), positives.view(SIZE)


def stream(pixels):
    """Print time and memory of counting a test set picture by picture."""
    generator = torch.Generator().manual_seed(0)
    drawn = [draw(SIZE[0] * SIZE[1], 0.01, "max logit", generator) for _ in range(4)]
    ours(torch.arange(4.0), torch.arange(4) < 2)  # loads the code
    before, seconds, histogram = peak_megabytes(), 0.0, ScoreHistogram()
    for scores, positives in pictures(drawn, pixels, generator):
        seconds += timed(lambda s=scores, p=positives: histogram.update(s, p))[0]
    counted, (reading, (value, bound)) = peak_megabytes(), timed(histogram.aupr)
    seen = histogram.positives + histogram.negatives
    print(f"streamed {seen:.3g} pixels: {seconds:.1f} s, {seen / seconds / 1e6:.0f} million pixels/s", end="")
    print(
        f", {counted - before:.0f} MB more memory; aupr() {reading:.2f} s, {peak_megabytes() - counted:.0f} MB", end=""
    )
    print(f"; AUPR {value:.6f}, bound {bound:.1e}", flush=True)


def rare():
    """Print the figures of a single positive among many."""
    generator = torch.Generator().manual_seed(1)
    drawn = [draw(SIZE[0] * SIZE[1], 0.0, "max logit", generator) for _ in range(4)]
    histogram, seconds, above = ScoreHistogram(), 0.0, 0
    for number, (scores, positives) in enumerate(pictures(drawn, RARE_PIXELS, generator)):
        if number == 0:
            positives = positives.clone()
            scores[0, 0], positives[0, 0] = RARE_SCORE, True
        above += int((scores >= RARE_SCORE).sum())
        seconds += timed(lambda s=scores, p=positives: histogram.update(s, p))[0]
    value, bound = histogram.aupr()
    print(f"one positive among {histogram.negatives + 1:.3g} pixels: {seconds:.1f} s", end="")
    print(f", AUPR {value:.6g}, bound {bound:.1e}, true error {abs(value - 1 / above):.1e}", flush=True)


def ours(scores, positives):
    """Average precision and bound by the histogram."""
    histogram = ScoreHistogram()
    histogram.update(scores, positives)
    return histogram.aupr()


def exact_torchmetrics(scores, positives):
    """Average precision by torchmetrics, its checks of the arguments off, which take a second more."""
    metric = BinaryAveragePrecision(thresholds=None, validate_args=False)
    metric.update(scores, positives.long())
    return float(metric.compute())


def peers(count):
    """Print times, ratios, bounds and true errors on `count` scores."""
    for kind in KINDS:
        scores, positives = draw(count, 0.01, kind, torch.Generator().manual_seed(2))
        runs = [timed(lambda s=scores, p=positives: ours(s, p)) for _ in range(3)]
        seconds, (value, bound) = statistics.median(run[0] for run in runs), runs[0][1]
        sklearn, truth = timed(lambda s=scores, p=positives: average_precision_score(p.numpy(), s.numpy()))
        if kind == "max logit":
            others = {
                "scikit-learn": sklearn,
                "torchmetrics": timed(lambda s=scores, p=positives: exact_torchmetrics(s, p))[0],
                "torch.sort": timed(lambda s=scores: s.sort())[0],
            }
            print(f"{count:.3g} scores at once: ours {seconds:.2f} s", end="")
            print(*(f", {name} {other:.2f} s ({other / seconds:.1f}x)" for name, other in others.items()), sep="")
        print(f"  {kind:12} AUPR {truth:.6f}, bound {bound:.1e}, true error {abs(value - truth):.1e}", flush=True)


def main():
    """Run the three parts; the stream comes first, before anything else has raised the peak of memory."""
    parser = cli.Parser(__doc__)
    parser.add_argument("--pixels", type=cli.positive_int, default=1_400_000_000, help="pixels streamed")
    parser.add_argument("--scores", type=cli.positive_int, default=20_000_000, help="scores counted at once")
    args = parser.parse_args()
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}", flush=True)
    stream(args.pixels)
    rare()
    peers(args.scores)
    return 0


if __name__ == "__main__":
    sys.exit(cli.run(main))
