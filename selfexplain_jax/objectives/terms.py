"""Terms of the objective. Each is `term(outputs, label, **options) -> [B]`; it is reduced once and weighted in compose.

`outputs` is the dict that `training/steps.py` fills, all float32:
  scores [B, C]               class scores of the image pass, z(x)
  target_logits [B, h, w]     max_{c in y} s_c;   target_mask [B, h, w] its sigmoid, m
  non_target_logits [B, h, w] max_{c not in y} s_c; non_target_mask [B, h, w] its sigmoid, n
  logit_maps [B, h, w, C]     s
  image [B, h, w, 3]          the image at the maps' resolution
  object_scores [B, K, C]     z(x|m) or, one class at a time, z(x|S_c)
  object_label [B, K, C]      the classes shown there; object_valid [B, K] whether a class was shown
  background_scores [B, C]    z(x|1-m)
  evaluator_scores [B, C]     z(x|m') for a mask m' that does not know the label
  positive_weights [C]        w, where rare classes' positives weigh more (config.data.positive_weights)
`link` ("softmax" or "sigmoid") says how scores become probabilities. N = h w.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from selfexplain_jax.models import edges


def cross_entropy(scores: jax.Array, label: jax.Array, link: str) -> jax.Array:
    """CE(z, y), or mean_c BCE(z_c, y_c) under the sigmoid link: [..., C] and targets in [0, 1] to [...]."""
    if link == "softmax":
        label = label / jnp.maximum(label.sum(axis=-1, keepdims=True), 1e-6)
        return optax.softmax_cross_entropy(scores, label)
    return optax.sigmoid_binary_cross_entropy(scores, label).mean(axis=-1)


def log_probabilities(scores: jax.Array, link: str) -> jax.Array:
    """log p_c of class scores [..., C]: log softmax, or log sigmoid under the sigmoid link."""
    return jax.nn.log_softmax(scores) if link == "softmax" else jax.nn.log_sigmoid(scores)


def classification(outputs: dict, label: jax.Array, *, link: str) -> jax.Array:
    """CE(z(x), y), or mean_c BCE: the image pass names the classes.

    With `positive_weights` w among the outputs, mean_c (1 + (w_c - 1) y_c) BCE(z_c, y_c) in the place of the latter.
    """
    if "positive_weights" not in outputs:
        return cross_entropy(outputs["scores"], label, link)
    loss = optax.sigmoid_binary_cross_entropy(outputs["scores"], label)  # [B, C]
    weights = outputs["positive_weights"].reshape(1, -1)  # [1, C]
    return ((1.0 + (weights - 1.0) * label) * loss).mean(axis=-1)


def ranking(outputs: dict, label: jax.Array, *, link: str) -> jax.Array:
    """CE(softmax z(x), y / |y|): present classes above absent ones.

    Beside the sigmoid link's BCE, whose start is a plateau: there every class first learns its own rarity, and the
    gradient that tells classes apart is small beside it.
    """
    del link
    return (label.sum(axis=-1) > 0) * cross_entropy(outputs["scores"], label, "softmax")


def relative_target(scores: jax.Array, label: jax.Array, shown: jax.Array, link: str) -> jax.Array:
    """What the first pass said, as the target of the object pass; no gradient.

    softmax: p = softmax z(x). sigmoid: p = sigmoid z(x), with the logits of present classes that are not shown replaced
    by the mean logit of the absent ones. Scores and label [B, C], shown [B, K, C] to [B, K, C].
    """
    scores = jax.lax.stop_gradient(scores)
    if link == "softmax":
        return jnp.broadcast_to(jax.nn.softmax(scores)[:, None, :], shown.shape)
    absent = 1.0 - label
    mean_absent = (absent * scores).sum(axis=-1, keepdims=True) / jnp.maximum(absent.sum(axis=-1, keepdims=True), 1.0)
    hidden = label[:, None, :] * (1.0 - shown)
    return jax.nn.sigmoid(jnp.where(hidden > 0, mean_absent[:, None, :], scores[:, None, :]))


def object(outputs: dict, label: jax.Array, *, link: str, target: str = "absolute") -> jax.Array:  # noqa: A001
    """CE(p, z(x|m)): the object alone is still the class.

    target "absolute": p is the label of what is shown. "relative": p is the first pass's answer (`relative_target`).
    "present": -mean over the shown classes of log p_c(x|m), and nothing is asked of the others (Dabkowski & Gal 2017,
    as Stalder et al. 2022 take it to several classes); under softmax the same as "absolute".
    """
    shown = outputs["object_label"]
    if target == "present":
        log_p = log_probabilities(outputs["object_scores"], link)  # [B, K, C]
        loss = -(shown * log_p).sum(axis=-1) / jnp.maximum(shown.sum(axis=-1), 1.0)
    else:
        wanted = shown if target == "absolute" else relative_target(outputs["scores"], label, shown, link)
        loss = cross_entropy(outputs["object_scores"], wanted, link)  # [B, K]
    return mean_of_valid(loss, outputs["object_valid"])


def background(outputs: dict, label: jax.Array, *, link: str, form: str = "auto", power: float = 0.3) -> jax.Array:
    """In the background there is nothing.

    form "absent": sum_c BCE(z_c, 0), q = sigmoid z. "uniform": KL(uniform || q), "entropy": log C - H(q), with
    q = softmax z(x|1-m). "auto": absent under the sigmoid link, uniform under softmax.
    "mean_entropy": (log C - H(q)) / C, which is mean_c q_c log q_c (Stalder et al. 2022, section 3) up to the constant
    log C / C, so that 0 is the least. "probability": (mean over the present classes of p_c)^power, with p by the link
    (the objective of Dabkowski & Gal 2017); 0 without a present class. `power` counts there alone.
    """
    scores = outputs["background_scores"]
    if form == "probability":
        # By logarithms: the power of a probability that underflows to 0 would have no finite gradient.
        log_p = jnp.where(label > 0, log_probabilities(scores, link), -1e9)
        log_mean = jax.nn.logsumexp(log_p, axis=-1) - jnp.log(jnp.maximum(label.sum(axis=-1), 1.0))
        return jnp.exp(power * log_mean)
    if form == "absent" or (form == "auto" and link == "sigmoid"):
        return jax.nn.softplus(scores).sum(axis=-1)
    log_q = jax.nn.log_softmax(scores)
    log_classes = jnp.log(scores.shape[-1])
    if form in ("entropy", "mean_entropy"):
        lacking = log_classes + (jnp.exp(log_q) * log_q).sum(axis=-1)
        return lacking / scores.shape[-1] if form == "mean_entropy" else lacking
    return -log_q.mean(axis=-1) - log_classes


def evaluator(outputs: dict, label: jax.Array, *, link: str) -> jax.Array:
    """CE(z(x|m'), y), or BCE: the network must read pixels under masks that know nothing of the label (EVAL-X)."""
    return cross_entropy(outputs["evaluator_scores"], label, link)


def area_target(outputs: dict, label: jax.Array, *, link: str) -> jax.Array:
    """mean_u m(u)."""
    del label, link
    return outputs["target_mask"].mean(axis=(1, 2))


def area_non_target(outputs: dict, label: jax.Array, *, link: str) -> jax.Array:
    """mean_u n(u)."""
    del label, link
    return outputs["non_target_mask"].mean(axis=(1, 2))


def present_maps(outputs: dict, label: jax.Array, max_classes: int) -> tuple[jax.Array, jax.Array]:
    """Logit maps [B, h, w, k] of the present classes with the lowest index, and [B, k] whether each is present.

    k = `max_classes`, or C where there are fewer; where an image has fewer, absent classes fill the places.
    """
    present, class_ids = jax.lax.top_k(label, min(int(max_classes), label.shape[1]))  # [B, k]
    return jnp.take_along_axis(outputs["logit_maps"], class_ids[:, None, None, :], axis=-1), present


def mean_of_valid(loss: jax.Array, valid: jax.Array) -> jax.Array:
    """Mean of [B, k] over the places where `valid` [B, k] is 1; 0 where none is."""
    return (valid * loss).sum(axis=1) / jnp.maximum(valid.sum(axis=1), 1.0)


def doubled_distances(reach: int) -> tuple[int, ...]:
    """1, 2, 4, ... up to `reach` cells."""
    return tuple(2**i for i in range(int(reach).bit_length()))


def area_bounds(
    outputs: dict, label: jax.Array, *, link: str, lower: float = 0.05, upper: float = 0.3, max_classes: int = 3
) -> jax.Array:
    """Mean over present classes of [aN - T_aN + T_N - T_bN] / N, with T_k the sum of the k largest cells of S_c.

    The a N largest cells are pulled to 1, all beyond the b N largest to 0; equal to the sorted-mask loss of the
    predecessors (Stalder et al. 2022, eq. 8 to 10), which sums over classes where this takes the mean. At most
    `max_classes` present classes are looked at, those with the lowest index first.
    """
    del link
    maps, present = present_maps(outputs, label, max_classes)
    batch, height, width, k = maps.shape
    cells = height * width
    masks = jax.nn.sigmoid(maps).reshape(batch, cells, k).transpose(0, 2, 1)  # [B, k, N]
    a, b = round(lower * cells), round(upper * cells)
    top = jax.lax.top_k(masks, b)[0]  # [B, k, bN], largest first
    loss = (a - top[..., :a].sum(axis=-1) + masks.sum(axis=-1) - top.sum(axis=-1)) / cells  # [B, k]
    return mean_of_valid(loss, present)


def total_variation(mask: jax.Array, image: jax.Array | None = None, edge: float = 0.0) -> jax.Array:
    """mean |dx m| + mean |dy m|, [B, h, w] to [B]; with `edge` > 0 each difference weighs exp(-edge |d image|^2)."""
    down = jnp.abs(mask[:, 1:] - mask[:, :-1])
    right = jnp.abs(mask[:, :, 1:] - mask[:, :, :-1])
    if edge > 0:
        down = down * jnp.exp(-edge * jnp.square(image[:, 1:] - image[:, :-1]).sum(axis=-1))
        right = right * jnp.exp(-edge * jnp.square(image[:, :, 1:] - image[:, :, :-1]).sum(axis=-1))
    return down.mean(axis=(1, 2)) + right.mean(axis=(1, 2))


def smoothness(outputs: dict, label: jax.Array, *, link: str, edge: float = 0.0) -> jax.Array:
    """TV(m) + TV(n), weighted by the image's own edges where `edge` > 0."""
    del label, link
    image = outputs["image"]
    return total_variation(outputs["target_mask"], image, edge) + total_variation(
        outputs["non_target_mask"], image, edge
    )


def squared_smoothness(outputs: dict, label: jax.Array, *, link: str) -> jax.Array:
    """mean (dx m)^2 + mean (dy m)^2 of the target mask (Dabkowski & Gal 2017; a mean where they have a sum)."""
    del label, link
    mask = outputs["target_mask"]
    down, right = mask[:, 1:] - mask[:, :-1], mask[:, :, 1:] - mask[:, :, :-1]
    return jnp.square(down).mean(axis=(1, 2)) + jnp.square(right).mean(axis=(1, 2))


def affinity(outputs: dict, label: jax.Array, *, link: str, scale: float = 0.2, reach: int = 4) -> jax.Array:
    """mean_u sum_v k(u, v) [m_u (1 - m_v) + (1 - m_u) m_v]: neighbours of one colour belong to one side.

    k(u, v) = a(u, v) / (sum_v a(u, v) + 1e-3) with a = exp(-|x_u - x_v|^2 / (2 scale^2)) on normalised pixels, over the
    eight neighbours v at each of the distances 1, 2, 4, ... up to `reach` cells. A relaxed Potts energy, as the gated
    CRF loss (Obukhov et al. 2019, eq. 3), with the normalised local kernel of PAMR (Araslanov & Roth 2020, eq. 5): the
    outline of the mask moves to an edge of the image. What no neighbour resembles is left alone.
    """
    del label, link
    image, mask = outputs["image"], outputs["target_mask"][..., None]  # [B, h, w, 3], [B, h, w, 1]
    alike = {distance: edges.likeness(image, distance, scale) for distance in doubled_distances(reach)}
    total = sum(sum(near) for near in alike.values())
    # The sums over v of k(u, v) and of k(u, v) m_v; average_alike counts the cell itself.
    weight = total / (total + 1e-3)
    others = sum(edges.average_alike(mask, near, total + 1e-3, d) - mask / (total + 1e-3) for d, near in alike.items())
    return (weight * mask + others - 2.0 * mask * others).mean(axis=(1, 2, 3))


def self_training(
    outputs: dict,
    label: jax.Array,
    *,
    link: str,
    upper: float = 0.6,
    lower: float = 0.4,
    scale: float = 0.2,
    reach: int = 8,
    repeats: int = 3,
    max_classes: int = 3,
) -> jax.Array:
    """Masks agree with what the image's edges make of them: mean_c mean_u known(u) BCE(s_c(u), t_c(u)), c present.

    r_c is S_c, smoothed `repeats` times within the image's edges (`edges.smooth_within_edges` at `reach` cells and each
    half down to 1), without gradient. A cell is known where max_c r_c is `upper` or more, and of the class that reaches
    it (t_c = 1), or where it is `lower` or less, and background; else it counts for nothing. The self-supervised
    segmentation loss of Araslanov & Roth (CVPR 2020, section 3.3), with this project's filter for their PAMR and fixed
    thresholds for those relative to the image's highest mask. At most `max_classes` present classes, as `area_bounds`.
    """
    del link
    maps, present = present_maps(outputs, label, max_classes)
    distances = doubled_distances(reach)[::-1]
    filters = edges.edge_filters(outputs["image"], distances, scale)
    refined = jax.lax.stop_gradient(present[:, None, None, :] * jax.nn.sigmoid(maps))
    for _ in range(repeats):
        refined = edges.filter_maps(refined, filters, distances)
    best = refined.max(axis=-1, keepdims=True)  # [B, h, w, 1]
    # By its place and not as what equals the best: XLA may compute `refined` twice in one program, rounded in two ways.
    reaches = jax.nn.one_hot(refined.argmax(axis=-1), maps.shape[-1], dtype=bool)
    target = (reaches & (best >= upper)).astype(maps.dtype)
    known = ((best >= upper) | (best <= lower)).astype(maps.dtype)
    loss = (known * optax.sigmoid_binary_cross_entropy(maps, target)).mean(axis=(1, 2))  # [B, k]
    return mean_of_valid(loss, present)


def binarisation(outputs: dict, label: jax.Array, *, link: str) -> jax.Array:
    """mean_u 4 m (1 - m): 0 for a mask of zeros and ones, 1 for a grey one.

    Examples:
      >>> grey_and_hard = {"target_mask": jnp.asarray([[[0.5, 0.5]], [[0.0, 1.0]]])}
      >>> binarisation(grey_and_hard, None, link="sigmoid").tolist()
      [1.0, 0.0]
    """
    del label, link
    mask = outputs["target_mask"]
    return (4.0 * mask * (1.0 - mask)).mean(axis=(1, 2))


def border(outputs: dict, label: jax.Array, *, link: str, width: float = 0.1) -> jax.Array:
    """mean_u [softplus(max_c s_c(u)) + KL(uniform || softmax_c s(u))] over cells u within `width` sides of the border.

    A prior, not a fact: what lies along the border of an image is background, it is no class and favours none
    (boundary prior; Zhu et al., CVPR 2014). It is the one thing here that tells an object from a background which
    goes with the label.
    """
    del label, link
    logit_maps = outputs["logit_maps"]
    near = [
        jnp.minimum(jnp.arange(cells), jnp.arange(cells)[::-1]) < max(round(width * cells), 1)
        for cells in logit_maps.shape[1:3]
    ]
    ring = (near[0][:, None] | near[1][None, :])[None]  # [1, h, w]
    uniform = -jax.nn.log_softmax(logit_maps).mean(axis=-1) - jnp.log(logit_maps.shape[-1])  # [B, h, w]
    loss = jax.nn.softplus(logit_maps.max(axis=-1)) + uniform
    return (ring * loss).sum(axis=(1, 2)) / ring.sum()
