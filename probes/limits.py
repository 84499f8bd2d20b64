"""Where verdicts turn: the thresholds of all probes in one table, each with the figures on both sides of it."""

from typing import NamedTuple


class Limit(NamedTuple):
    """Where a verdict turns, and where the figure comes from."""

    value: float
    source: str


# benchmarks/panel.py prints the healthy and the faulty side of each.
LIMITS = {
    "imbalance": Limit(100.0, "most frequent / rarest class: CamVid has 109. A warning, never a failure"),
    "faulty_files": Limit(0.01, "share of a split's files, at least two; of 1,972 healthy pairs none is flagged"),
    "mixed_borders": Limit(0.2, "thin pixels a border pixel of a mask: healthy up to 0.11, JPEG 0.23, resized 0.27 up"),
    "mask_blocks": Limit(1.2, "borders on a JPEG's 8-pixel lines to those midway: 0.92 to 1.05, JPEG 1.37 to 3.5"),
    "outline_class": Limit(0.6, "share of a class's pixels that are thin: healthy up to 0.04, CamVid's poles"),
    "lone_pixels": Limit(0.15, "of the pixels below the top value: healthy up to 0.007, JPEG 0.11, clamped 0.45"),
    "clamped_top": Limit(0.5, "share of a mask's highest value: healthy up to 0.32, clamped 0.66 up (CamVid, streets)"),
    "borders_only": Limit(0.5, "thin share of the classes between the ends: healthy up to 0.01, clamped 0.86 up"),
    "all_top": Limit(0.95, "share of the highest value in a split: healthy 0.01 to 0.35. A warning, never a failure"),
    "missing_if_mapped": Limit(3, "classes; fewer may be absent by chance. Cityscapes' ids mapped twice lose 13 of 19"),
    "void_if_mapped": Limit(0.02, "void share: streets 0, and 0.17 once its sky is mapped to void"),
    "noise_image": Limit(0.08, "correlation of neighbouring pixels: healthy 0.20 up (MSRC's grass), noise up to 0.015"),
    "copy": Limit(0.92, "likeness of two images' detail: copies 0.93 up, views across splits up to 0.59"),
    "same_view": Limit(0.6, "the same: across healthy splits up to 0.59 (MSRC), a video's neighbours 0.46 to 0.99"),
    "same_views": Limit(0.05, "share of a split's images: none in CamVid, MSRC, streets. Only a warning"),
    "repeated": Limit(0.02, "share of a split's images: MSRC's test repeats 2 of 256 (0.008) from train"),
    "one_class": Limit(0.95, "share of pixels given to one class while the targets give it far less"),
    "agreement_borders": Limit(400, "label-border pixels of a 240-pixel mask: CamVid 750 up, a third of MSRC less"),
    "agreement_own_best": Limit(
        0.25, "masks that fit their image best of all: in order 0.55 (MSRC) to 1, shuffled 0.06"
    ),
    "agreement_files": Limit(16, "masks: with fewer not even all of them one way are 4 standard deviations of a coin"),
    "agreement_fit": Limit(
        0.03, "edge rank, medians over sets: in order 0.13 (MSRC) to 0.23 (streets), mirrored or shuffled at most 0.018"
    ),
    "agreement_margin": Limit(0.05, "edge rank gained by mirroring: CamVid in order 0.007 at most, mirrored 0.17"),
    "agreement_spreads": Limit(4.2, "standard deviations: of 1,600 masks only CamVid's one wrong mask lies beyond"),
    "agreement_shift": Limit(0.08, "best offset's gain / its fit: in order 0.00 to 0.03, 2 of 480 pixels 0.1 to 0.2"),
    "agreement_lead": Limit(3.4, "standard deviations: shuffled 3.7 (MSRC) to 12 (streets), other masks 2.3 to 3.1"),
    "agreement_share": Limit(0.05, "share of a set's masks from which on they fail; CamVid has 1 wrong mask in 233"),
    "agreement_alike": Limit(3, "masks moved alike, or wrong in a failing set; fewer may be an accident"),
    "log_lines": Limit(5, "training lines of the log that a judgement needs; --log-every is 10"),
    "log_steps": Limit(100, "steps that a loss is given to fall: ten runs were at 0.19 to 0.69 of it by then"),
    "log_flat": Limit(0.97, "least loss, of five lines, / first: ten runs on CamVid and streets 0.10 to 0.46"),
    "log_solved": Limit(0.1, "nats a pixel: below it small gradients and small gains are no fault"),
    "log_complete": Limit(0.95, "share of the steps from which on a run is at its end"),
    "log_last_rate": Limit(0.5, "last learning rate / highest: onecycle ends at 0.001, poly at 0"),
    "log_vanishing": Limit(1e-3, "gradient norm: ten runs on CamVid and streets 0.6 at least"),
    "log_exploding": Limit(100, "gradient norm / its median: ten runs on CamVid and streets at most 4.7"),
    "log_overfit": Limit(1.1, "last validation loss / least: ten runs on CamVid and streets at most 1.02"),
    "log_still_falling": Limit(0.9, "training loss of the last seventh / the one before: ten runs 0.93 to 1.0"),
    "log_hardly_fell": Limit(0.7, "training loss at the end / at the start: ten runs 0.11 to 0.46"),
    "same_mask": Limit(0.99, "agreement between the masks of different images"),
    "survives": Limit(0.5, "share of the IoU beyond chance kept without the image: healthy 0 to 0.26, blind 0.97 up"),
    "layout_reliance": Limit(0.8, "healthy 0.01 to 0.25, after 60 steps 0.54; taught by noise, shuffled masks 0.95 up"),
    "answers": Limit(0.02, "IoU beyond chance below which nothing can be told: random weights have 0 to 0.004"),
    "noise_features": Limit(0.6, "centred cosine of image, noise: healthy 0.02 to 0.21, logits 0.43; layout 0.70 up"),
    "same_features": Limit(0.995, "centred cosines of any two inputs: 1 where the image is cut off, else up to 0.96"),
    "still_prior": Limit(0.95, "training loss / class prior: CamVid 0.19 (400 steps), learning rate 0 at least 0.98"),
    "leak_margin": Limit(0.1, "of the layout loss: CamVid 1.084, noise and wrong pairs 1.09 to 1.17, leak 0.185"),
    "place_share": Limit(0.9, "nats learnt without images: CamVid 0.55, bands 0.72, images that show nothing 1.20"),
    "renamed_share": Limit(0.75, "nats learnt, permuted / true ids: CamVid 1.01, one frequent id ignored 0.36"),
    "frozen_share": Limit(0.9, "nats beyond the layout, random backbone: CamVid 0.22, bands 0.74; a frozen one 1"),
    "above_floor": Limit(
        0.05, "mIoU above the layout floor: a model that has learnt, so that a comparison proves something"
    ),
    "sums_to_one": Limit(1e-3, "rounding of a softmax in float32, or in float16 on its way"),
    "frequent": Limit(0.01, "share of the labelled pixels from which on a class's IoU on 32 images is no accident"),
    "renamed": Limit(
        0.3, "IoU that a class gains by another name: healthy 0 (mIoU +0.002 at most), swapped road and building 0.8"
    ),
    "one_offset": Limit(0.7, "share of the renamed classes that are renamed by the same offset"),
    "shift_pixels": Limit(2, "pixels of the network's size"),
    "errors_mended": Limit(
        0.06,
        "share of the wrong pixels that are right once the masks are moved: healthy 0 to 0.008; 2 pixels 0.11 (CamVid) "
        "and 0.20 (streets), 8 of the original's 0.27 and 0.56, with weak models 0.09",
    ),
    "cross_drop": Limit(0.25, "of the mIoU: CamVid val to test 0.13, grey images 0.04 to 0.21; another set 0.46, 0.63"),
    "cross_layouts_alike": Limit(0.85, "agreement of majority maps: same set 0.96 up; CamVid and streets 0.70"),
    "cross_closer": Limit(0.1, "agreement gained: same set 0, CamVid on streets 0.11, a set rolled or turned 0.8"),
    "cross_recovered": Limit(0.33, "of the drop: rolled or turned sets 1.0, CamVid and streets, other's net -0.02"),
    "cross_pull": Limit(0.1, "above reference: another set 0.03, 0.05, inverted colours 0.08; layout in logits 0.18"),
    "unturned": Limit(
        0.32,
        "of the pixels on one side that a mirrored image gets right or as before, the share as before: healthy 0.03 to "
        "0.07, weak 0.21 (streets, 200 steps), flips without masks 0.42 (CamVid) and 0.55 (streets)",
    ),
    "same_when_mirrored": Limit(
        0.08, "same mask when mirrored, beyond its own symmetry: healthy at most 0.006, flips without masks 0.21, 0.22"
    ),
    "too_symmetric": Limit(0.3, "symmetry of the masks beyond that of the targets: healthy up to 0.12 (weak streets)"),
    "better_input": Limit(
        0.03,
        "mIoU gained by another preparation: healthy at most -0.01 (CamVid, 100 steps) and -0.02; BGR instead of RGB "
        "0.055 (CamVid, trained with colour 0.4) and 0.12 (streets), normalised twice 0.49",
    ),
    "inputs_helped": Limit(0.75, "share of the images that another preparation makes better: all, with RGB after BGR"),
    "as_good": Limit(0.03, "mIoU between two preparations that do the same"),
    "no_contrast": Limit(0.05, "share of the images' own contrast in [0, 1]; [0, 1] itself keeps all of it"),
    "stale_statistics": Limit(0.1, "mIoU gained by the batch's statistics: healthy -0.05 to 0, reset ones 0.61, 0.64"),
    "fresh_weights": Limit(1000, "weights of a layer from which on chance hardly hides that some moved"),
    "fresh_distance": Limit(1.95, "Kolmogorov-Smirnov distance times sqrt(n) that chance exceeds once in 1000"),
}


def stands_out(miou, floor):
    """Whether a score is clearly above what needs no image: below that a model's answers prove nothing."""
    return miou > floor + LIMITS["above_floor"].value
