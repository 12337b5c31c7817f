"""What the numbers of the report mean, in a sentence each; docs/metrics.md has the formulas and conventions."""

from __future__ import annotations

import re

DEFINITIONS = {
    "accuracy": "Share of images that are classified rightly: the highest score is the label's or, with several, "
    "exactly the present classes have a probability above .5.",
    "label_f1_macro": "F1 of the predicted labels per class, averaged over classes.",
    "label_f1_micro": "F1 of the predicted labels, all classes pooled.",
    "mean_average_precision": "Area under precision over recall as images are ranked for a class, mean over classes.",
    "object_accuracy": "Accuracy on the image seen through its own mask; _INFILL says what fills the rest.",
    "background_accuracy": "Accuracy on what is left without the masked object; low is good, chance is 1/C.",
    "background_entropy": "Entropy of the prediction without the object; 1 where nothing is recognised.",
    "background_probability": "Probability of the label on what is left without the object.",
    "object_probability": "Probability of the label where the masked object alone is shown.",
    "saliency_score": "Log of the mask's area (at least .05) minus log of the label's probability on it; low is good.",
    "iou": "Overlap of the pixels with a mask above .5 and the annotated object: intersection over union.",
    "f1": "F1 of the pixels with a mask above .5 against the annotated object.",
    "iou_predicted": "The same overlap for the mask of the predicted classes in the place of the true ones.",
    "continuous_iou": "Sum of the pixelwise minimum of mask and object over the sum of their maximum; no threshold.",
    "mean_iou_per_class": "Overlap of each present class's own mask with its pixels, per class, then averaged.",
    "miou": "Overlap per class over all pixels of the data set, background included, then averaged.",
    "iou_refined": "IoU of the mask after its logits were smoothed within the image's edges.",
    "continuous_iou_refined": "Continuous IoU of the mask after its logits were smoothed within the image's edges.",
    "miou_named": "The pooled overlap per class, of the classes that the network names alone.",
    "miou_refined": "The pooled overlap per class of refined masks, of the classes that the network names alone.",
    "soft_precision": "Share of the mask's sum that lies on the object.",
    "soft_recall": "Share of the object that the mask covers, by its values.",
    "soft_f1": "F1 of mask values, without a threshold.",
    "soft_accuracy": "Share of pixels that the mask has right, by its values.",
    "mean_absolute_error": "Mean difference of mask and annotated object.",
    "object_coverage": "Share of the object that the mask covers.",
    "background_coverage": "Share of the background that the mask covers.",
    "pixel_auc": "Area under the ROC curve of the mask as a classifier of the image's pixels.",
    "mask_area": "Mean of the mask: the share of the image that it shows.",
    "object_area": "Share of the image that the annotated object covers.",
    "pointing_game": "How often the map's maximum lies on the object, or within 15 px of it at 224 px.",
    "pointing_game_strict": "How often the map's maximum lies on the object.",
    "energy_pointing_game": "Share of the map's sum that lies on the object; maps that are no masks, scaled to 0..1.",
    "max_box_accuracy": "MaxBoxAccV2: share of maps whose best box overlaps one of the object's by .3, .5 and .7, each "
    "at its best threshold, then the mean.",
    "box_accuracy": "Share of maps with a box that overlaps one of the object's by .5 at least, at the best threshold.",
    "pixel_average_precision": "Average precision of the pixels over the whole data set (PxAP).",
    "deletion": "Area under the class's probability while its most salient pixels are removed first.",
    "insertion": "Area under the class's probability while its most salient pixels appear first.",
    "average_drop": "How much of the class's probability is lost where the map dims the image.",
    "increase": "How often the class's probability rises where the map dims the image.",
    "average_gain": "How much of what is missing to certainty is gained where the map dims the image.",
    "road": "Probability left when the least salient pixels are imputed, minus when the most salient are, halved.",
    "class_specific_own": "Probability of a class seen through its own mask.",
    "class_specific_other": "Probability of a class seen through another class's mask.",
    "class_specific_unmasked": "Probability of a class on the whole image.",
    "swap_owner_rate": "How often a mask, laid over an image of another class, makes that image the mask's class.",
    "swap_pixel_rate": "How often an image that is seen through another image's mask is still recognised.",
    "swap_owner_gap": "swap_owner_rate minus the same with true outlines: what masks tell beyond the object's shape.",
    "mask_only_accuracy": "Accuracy of a small classifier that sees masks alone.",
    "mask_only_gap": "mask_only_accuracy minus the same for true outlines.",
    "evaluator_accuracy": "Accuracy on masked objects of a separate classifier, trained under random masks.",
    "ssim": "Structural similarity of a map before and after the model was changed: 1 where it stayed the same.",
    "hog_correlation": "Pearson's correlation of the two maps' histograms of oriented gradients.",
    "rank_correlation": "Spearman's correlation of the two maps' pixels.",
    "absolute_rank_correlation": "Spearman's correlation of the absolute values of the two maps' pixels.",
    "maps": "Maps that were compared, one for each image.",
    "defined": "Maps that every similarity of the row is defined for: a flat map has no correlation.",
    "seconds_per_image": "Time to explain an image, compilation left out.",
    "failed": "Images that the method could not explain.",
}
VARIANTS = {
    "ground_truth": "the annotated object in the place of the mask",
    "full_image": "the whole image in the place of the masked one",
    "difficult": "classes that cover less than a quarter of an image that shows others too",
    "zero": "filled with the mean colour",
    "color_noise": "filled with a colour and noise",
    "blur": "filled with the blurred image",
    "other_image": "filled with another image's background",
    "boxes": "with boxes in the place of masks",
    "photo": "at the photo's own size",
}


def definition(name: str) -> str:
    """Returns what a number means; of a variant, what it is a variant of. Empty for an unknown name."""
    if name in DEFINITIONS:
        return DEFINITIONS[name]
    for ending, meaning in VARIANTS.items():
        base = name.removesuffix(f"_{ending}")
        if base != name and definition(base):
            return f"{definition(base)} Here: {meaning}."
    threshold = re.fullmatch(r"(.+)_(\d\d)", name)
    if threshold and threshold.group(1) in DEFINITIONS:
        return DEFINITIONS[threshold.group(1)].replace(".5", f".{threshold.group(2)}")
    return ""
