"""The arrows between our packages, and what importing them costs."""

import ast
import dataclasses
import inspect
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = ("run_sft", "run_grpo", "run_rl", "run_reward")
ABSTRACT = {"trainer", "on_policy"}
ALLOWED = {
    **{script: {"trainers", "callbacks", "relax"} for script in SCRIPTS},
    "trainers": {"relax"},
    "callbacks": {"relax"},
    "relax": set(),
}


def under_type_checking(tree: ast.Module) -> set[int]:
    """The ids of the nodes that run for type checkers only."""
    blocks = (n for n in ast.walk(tree) if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test))
    return {id(child) for block in blocks for child in ast.walk(block)}


def imported(tree: ast.Module) -> set[str]:
    """Our packages that a module imports, inside functions too, but not under TYPE_CHECKING."""
    hidden = under_type_checking(tree)
    found = set()
    for node in ast.walk(tree):
        if id(node) in hidden:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found.add((node.module or "").split(".")[0])
    return found & ALLOWED.keys()


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_point_one_way(package: str) -> None:
    files = [ROOT / f"{package}.py"] if package.startswith("run_") else list((ROOT / package).rglob("*.py"))
    assert files
    for file in files:
        others = imported(ast.parse(file.read_text())) - {package}
        assert others <= ALLOWED[package], f"{file.relative_to(ROOT)} imports {others - ALLOWED[package]}"


def test_trainers_import_one_another_only_from_child_to_abstract_parent() -> None:
    """And their helpers (settings, batching, ...) import no trainer at all."""
    files = {file.stem: file for file in (ROOT / "trainers").glob("*.py") if file.name != "__init__.py"}
    helpers = {name for name in files if not name.endswith("trainer")} - ABSTRACT
    assert files.keys() >= ABSTRACT
    for name, file in files.items():
        parents = {"trainer"} if name in ABSTRACT else ABSTRACT
        allowed = helpers if name in helpers else helpers | parents
        tree = ast.parse(file.read_text())
        hidden = under_type_checking(tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and id(node) not in hidden:
                package, _, module = (node.module or "").partition(".")
                assert package != "trainers" or module in allowed, f"{file.name} imports {node.module}"


@pytest.mark.parametrize("module", ["trainers", "callbacks", "relax.logging", "relax.data", "relax.rewards", *SCRIPTS])
def test_imports_leave_heavy_packages_alone(module: str) -> None:
    code = f"import sys, {module}; print([m for m in ('mlflow', 'datasets', 'trl', 'pandas') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_and_flag_errors_load_neither_torch_nor_lightning(script: str) -> None:
    code = (
        f"import sys, {script}\n"
        f"try: {script}.cli(sys.argv[1:])\n"
        "except SystemExit as stop: code = stop.code\n"
        "else: code = 0\n"
        "print('CODE', code, [m for m in ('torch', 'lightning', 'transformers', 'numpy') if m in sys.modules])"
    )
    for flag, expected in (("--help", 0), ("--learing_rate=1", 2), ("--learning_rate=fast", 2), ("--precision=17", 2)):
        done = subprocess.run([sys.executable, "-c", code, flag], capture_output=True, text=True, cwd=ROOT, check=False)
        assert done.stdout.splitlines()[-1] == f"CODE {expected} []", done.stderr


def parameters(*functions: object) -> set[str]:
    """The parameters of functions and constructors, and the fields of dataclasses among them."""
    names: set[str] = set()
    for function in functions:
        for parameter in inspect.signature(function, eval_str=True).parameters.values():
            if dataclasses.is_dataclass(parameter.annotation):
                names |= {field.name for field in dataclasses.fields(parameter.annotation)}
            elif parameter.kind is not parameter.VAR_KEYWORD:
                names.add(parameter.name)
    return names


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_offers_every_flag_of_the_trainers_and_of_lightning(script: str) -> None:
    import lightning as L

    from relax.launch.flags import BUILT_BY_SCRIPTS, NOT_FLAGS, NOT_FOR_POLICIES
    from trainers import GRPOTrainer, OnPolicyTrainer, RewardTrainer, RLTrainer, SFTTrainer, Trainer

    done = subprocess.run(
        [sys.executable, f"{script}.py", "--help"], capture_output=True, text=True, cwd=ROOT, check=True
    )
    not_offered, trainers = {
        "run_sft": (BUILT_BY_SCRIPTS, (Trainer, SFTTrainer)),
        "run_reward": (BUILT_BY_SCRIPTS, (Trainer, RewardTrainer)),
        "run_grpo": (NOT_FOR_POLICIES, (Trainer, OnPolicyTrainer, GRPOTrainer)),
        "run_rl": (NOT_FOR_POLICIES, (Trainer, OnPolicyTrainer, RLTrainer)),
    }[script]
    main = import_module(script).main
    hidden = {*not_offered, *NOT_FLAGS} - parameters(main) - {"config"}
    offered = {word.removeprefix("--") for word in done.stdout.split() if word.startswith("--")}
    assert parameters(main, *trainers, L.Trainer) - hidden <= offered
    listed = {line.split()[0].removeprefix("--") for line in done.stdout.splitlines() if line.startswith("  --")}
    assert not hidden & listed
    assert "Lightning:" in done.stdout


def test_no_flag_is_offered_that_on_policy_trainers_refuse() -> None:
    from relax.launch.flags import NOT_FOR_POLICIES
    from trainers.on_policy_settings import NOT_ON_POLICY

    assert NOT_ON_POLICY.keys() <= set(NOT_FOR_POLICIES)


def test_every_name_of_another_system_leads_to_a_flag_that_there_is() -> None:
    from relax.other_names import OTHER_NAMES

    listed = set()
    for script in SCRIPTS:
        command = [sys.executable, f"{script}.py", "--help"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
        listed |= {line.split()[0].removeprefix("--") for line in done.stdout.splitlines() if line.startswith("  --")}
    assert OTHER_NAMES.keys() <= listed
    assert not {name for theirs in OTHER_NAMES.values() for name in theirs} & listed
