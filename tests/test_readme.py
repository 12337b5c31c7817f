"""What the README shows in Python runs as it stands there, on the smallest networks that it can be shown on."""

import pathlib
import re
import subprocess
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from sklearn import linear_model
from test_explainer import eight_classes, tiny

from selfexplain_jax import attribution, config, data, main, models, objectives
from selfexplain_jax.compile import abstract_batch, abstract_state
from selfexplain_jax.training import loop
from selfexplain_jax.training import mesh as mesh_lib
from selfexplain_jax.types import Predictor

ROOT = pathlib.Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
REGISTRIES = (data.DATASETS, models.MODELS, attribution.METHODS, objectives.TERMS)


def blocks(title, language="python"):
    """The blocks of code below a heading."""
    section = README.split(f"## {title}\n", 1)[1].split("\n## ", 1)[0]
    return re.findall(rf"^```{language}\n(.*?)^```", section, re.MULTILINE | re.DOTALL)


def test_every_rung_says_what_was_measured_and_what_is_expected():
    section = README.split("## From one laptop to a pod\n", 1)[1].split("\n## ", 1)[0]
    rungs = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("|")][2:]
    assert len(rungs) >= 6
    for where, command, time, number in rungs:
        assert "launch/" in command
        if command.endswith("`") and " bash launch/" in f" {command}":
            check_dry_run(command.strip("`"))
        for cell in (time, number):
            assert re.match("(measured|expected): ", cell), (where, cell)
            assert re.search(r"\d|day|that of Slurm", cell), f"{where}: no figure in {cell}"


def check_dry_run(command):
    """Runs a command of the README with --dry-run, which asks for all that its script needs, and what it would run."""
    script, arguments = re.match(r"(.*bash launch/\w+\.sh)(.*)", command).groups()
    done = subprocess.run(
        ["bash", "-c", f"{script} --dry-run {arguments}"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0 and "selfexplain_jax" in done.stdout, (command, done.stderr)
    # Machines elsewhere have no $TFDS_DATA_DIR of this one.
    assert "synthetic" in done.stdout or "--config.data.data_dir=" in done.stdout, command


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder with the README's mine.py, photos and labels; what it registers is taken back."""
    for registry in REGISTRIES:
        for name, value in dict(registry).items():
            monkeypatch.setitem(registry, name, value)
    before = [set(registry) for registry in REGISTRIES]
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "mine.py").write_text("\n\n".join(blocks("Bring your own data, network, method and loss")))
    rng = np.random.default_rng(0)
    np.save(tmp_path / "photos.npy", rng.integers(0, 255, (40, 64, 64, 3), dtype=np.uint8))
    np.save(tmp_path / "labels.npy", rng.integers(0, 2, 40))
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for registry, names in zip(REGISTRIES, before, strict=True):
        for name in set(registry) - names:
            del registry[name]


def test_own_data_network_method_and_loss(own):
    settings = config.load_config("mine.py")
    settings.data.data_dir = str(own)
    experiment, mesh = loop.build(settings), mesh_lib.make_mesh()
    assert experiment.dataset.info.class_names == ("cat", "dog") and len(experiment.dataset.source("test")) == 20
    assert experiment.dataset.source("train")[0]["label"].sum() == 1
    batch = abstract_batch(settings, experiment.dataset.info.num_classes, mesh)
    _, logs = jax.eval_shape(loop.make_step(experiment, mesh), abstract_state(experiment, mesh), batch)
    assert "term/my_loss" in logs
    predictor = attribution.build_predictor(lambda images: images[:, 0, 0, :2], class_names=2, image_size=8)
    maps = attribution.build_method("my_method")(predictor, -jnp.ones((2, 8, 8, 3)), jnp.zeros((2, 3), int))
    assert maps.shape == (2, 3, 8, 8) and (maps == 1).all()


@pytest.mark.slow
# How ml_collections loads a config file.
@pytest.mark.filterwarnings(r"ignore:the load_module\(\) method is deprecated:DeprecationWarning")
def test_own_parts_are_trained_and_evaluated_by_the_command(own):
    small = ["--config.train.steps=3", "--config.train.warmup_steps=1", "--config.train.batch_size=4"]
    small += ["--config.evaluation.audit=False", "--config.data.data_dir=.", "--workdir=run"]
    assert main.run(["main", "--config=mine.py", *small]) == 0
    assert (own / "run" / "report.html").is_file()


def test_each_part_of_ones_own_takes_a_handful_of_lines():
    _, *parts = blocks("Bring your own data, network, method and loss")
    assert len(parts) == 4
    for part in parts:
        lines = [line for line in part.splitlines() if line.strip() and not line.strip().startswith("#")]
        # About five, the definition, and the line that names it.
        assert len(lines) <= 8, part


def test_photos_are_explained_in_five_lines(tmp_path, monkeypatch):
    (block,) = blocks("Explain your own photos")
    assert len([line for line in block.splitlines() if line and "import" not in line]) <= 5
    small = config.load_config(str(ROOT / "configs" / "synthetic.py"))
    small.data.image_size, small.model.widths, small.model.edge_distances = 32, (8,), ()
    monkeypatch.setattr(config, "load_config", lambda spec: small)
    monkeypatch.setattr(loop, "restore", lambda settings, workdir: loop.untrained(settings))
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (50, 40), "red").save(tmp_path / "photos" / "a.jpg")
    monkeypatch.chdir(tmp_path)
    exec(block, {})  # noqa: S102
    assert (tmp_path / "explained" / "a.png").is_file() and (tmp_path / "explained" / "index.json").is_file()


def test_a_scores_function_is_explained_in_five_lines_which_the_contract_shows_too():
    block, _ = blocks("Explain a model of your own")
    # Behind the imports and the images.
    lines = [line for line in block.split("\n\n", 2)[2].splitlines() if line]
    assert len(lines) == 5
    assert textwrap.indent("\n".join(lines), 8 * " ") in Predictor.__doc__
    exec(block.replace("64", "16"), names := {})  # noqa: S102
    maps, images, weights, class_ids = (names[name] for name in ("maps", "images", "weights", "class_ids"))
    assert maps.shape == (2, 2, 16, 16)
    # What the pixels of a linear network add to its score is their values times their weights.
    shares = images[..., None] * weights.reshape(1, 16, 16, 3, 2)  # [B, H, W, 3, C]
    expected = jnp.take_along_axis(shares.sum(axis=3).transpose(0, 3, 1, 2), class_ids[:, :, None, None], axis=1)
    np.testing.assert_allclose(maps, expected, rtol=1e-4, atol=1e-4)


def test_weights_of_another_library_are_explained():
    """A logistic regression by scikit-learn on images that are bright in the upper or in the lower half."""
    rng = np.random.default_rng(0)
    images, label = 0.1 * rng.normal(size=(40, 8, 8, 3)).astype(np.float32), np.arange(40) % 2
    images[label == 0, :4] += 1
    images[label == 1, 4:] += 1
    fitted = linear_model.LogisticRegression().fit(images.reshape(40, -1), label)
    weights, bias = jnp.asarray(fitted.coef_[0], jnp.float32), float(fitted.intercept_[0])

    def scores(images):
        logit = images.reshape(len(images), -1) @ weights + bias
        return jnp.stack([-logit, logit], axis=1)

    predictor = attribution.build_predictor(scores, class_names=["upper", "lower"], image_size=8)
    maps = attribution.METHODS["gradient_x_input"](predictor, images[:2], np.array([[0, 1], [0, 1]]))
    # The sums and the bias make the decision function, with the sign of the class.
    decisions = fitted.decision_function(images[:2].reshape(2, -1))
    np.testing.assert_allclose(maps.sum(axis=(2, 3))[:, 1] + bias, decisions, rtol=1e-3, atol=1e-4)
    # And what speaks for a class lies in its half.
    assert maps[0, 0, :4].sum() > 0.9 * maps[0, 0].sum() > 0 and maps[1, 1, 4:].sum() > 0.9 * maps[1, 1].sum() > 0


def test_a_pure_function_is_the_frozen_classifier_of_an_explainer(tmp_path, monkeypatch):
    (block,) = blocks("Explain a classifier that is there")
    asked, small = [], tiny("explainer")
    # As that config has it: the block must turn it off.
    small.train.steps, small.explainer.start_from_classifier = 2, True
    monkeypatch.setattr(config, "load_config", lambda spec: asked.append(spec) or small)
    monkeypatch.chdir(tmp_path)
    predictor = eight_classes()
    names = {name: getattr(predictor, name) for name in ("scores", "probabilities", "class_names", "image_size")}
    exec(block, names)  # noqa: S102
    assert asked == ["configs/synthetic.py:explainer"] and names["run"].step == 2
    assert names["predictor"].class_names == predictor.class_names and (tmp_path / "runs" / "explainer").is_dir()


def test_a_model_of_ones_own_is_explained_by_three_methods():
    _, block = blocks("Explain a model of your own")
    seen, block = [], block.replace("224", "32")
    (loop_line,) = re.findall(r"for name in (\(.*\)):", block)
    for name in eval(loop_line):
        exec(block.replace(loop_line, f'("{name}",)'), names := {})  # noqa: S102
        assert names["maps"].shape == (2, 2, 32, 32) and bool(jnp.isfinite(names["maps"]).all())
        seen.append(name)
    assert len(seen) == 3
