"""Self-Explainer on MNIST (TFDS mnist/3.0.1): the plain digits, and digits on textured canvases.

Method:   as configs/synthetic.py.
Hardware: two CPU cores.
Command:  python -m selfexplain_jax.main --config=configs/mnist.py --workdir=runs/mnist
Data:     python -m selfexplain_jax.data.prepare --dataset=mnist --data_dir=DIR, then --config.data.data_dir=DIR.
Variants: plain (28 px, in a 32 px frame), canvas (one digit on 64 px), canvas_classifier (its plain classifier).
          Measured scores and times: docs/results.md.
"""

from selfexplain_jax.config import base_config, check_variant
from selfexplain_jax.recipes import scores_recipe, self_explainer_recipe, start_later

VARIANTS = ("plain", "canvas", "canvas_classifier")


def get_config(variant="plain"):
    """The experiment of that name."""
    check_variant(__file__, variant, VARIANTS)
    config = self_explainer_recipe(base_config())
    config.data.name = "mnist"
    # A pool further from the mean than for textures, and more weight on what little of an image the digits are.
    config.model.pooling_temperature = 0.5
    config.objective.area_non_target.weight = 0.5
    config.objective.affinity.weight = 20.0
    if variant == "plain":
        # The 28 px digit in a frame that the network's levels can halve.
        config.data.image_size = 32
        # Digits of which one in a hundred is unclear take longer than textures, and a step is cheap: first the scores
        # alone, at a third of the time, then all passes.
        config.train.steps = 8500
        # On plain black the all-ones mask costs no pass anything: area, colour and the border have to shrink it.
        config.objective.border = {"weight": 0.5, "width": 0.06}
        start_later(config, 6000)
        # What shrinks the mask must not cost the class: sums over classes and cells would outweigh a mean of ten terms.
        config.objective.classification.weight, config.objective.ranking.weight = 10.0, 4.0
        # Nor may it leave a piece of the digit that nothing can be read from.
        config.objective.object.weight, config.objective.area_target.weight = 4.0, 0.4
        config.objective.background.weight = 0.5
    else:
        config.data.image_size = 64
        config.data.options = {"canvas": True}
        # A digit covers little of a canvas.
        config.objective.area_target.weight = 1.0
        # A thin stroke on a filling of its own colour cannot be read, so that with other infills the masks keep a rim
        # of the background around the digit.
        config.passes.infills = ("blur",)
    if variant == "canvas_classifier":
        config.method = "classifier"
        scores_recipe(config)
    return config
