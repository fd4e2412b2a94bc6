"""The merged folder: whole or absent, complete, and the same from anywhere; every mistake is one clear message."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from paft_plugin.cli import paft
from paft_plugin.errors import PaftError
from paft_plugin.fusion.merge import open_fusion, write_fusion
from paft_plugin.fusion.merge.write import shard_bytes
from paft_plugin.fusion.merge.writer import ShardedWriter, whole_folder
from tests.deltas.builders import TEMPLATE, edit_config, make_adapter, make_base, make_model
from tests.fusion.merge.tools import assert_same, branch, by_mergekit, content, load_all, ours, reference, save
from tests.fusion.mergekit_runs import run_mergekit
from tests.fusion.world import World


def merge(recipe: Path, out: Path, *options: str) -> Result:
    return CliRunner().invoke(paft, ["merge", str(recipe), str(out), "--quiet", *options])


@pytest.fixture
def recipe(world: World, tmp_path: Path) -> Path:
    here = content("ties", world["base"], branch(world, "sft"), branch(world, "dpo"), out_dtype="bfloat16")
    return save(here, tmp_path / "rec ipe+x@y.yml")


def test_the_command_writes_a_whole_model(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "a b+c@d" / "merged"
    assert merge(recipe, out).exit_code == 0
    assert_same(load_all(out), ours(recipe))
    assert AutoTokenizer.from_pretrained(out).chat_template == TEMPLATE
    loaded = AutoModelForCausalLM.from_pretrained(out)
    assert loaded.dtype == torch.bfloat16
    assert loaded.generation_config.max_new_tokens == 7
    assert (out / "mergekit_config.yml").read_text() == recipe.read_text()
    assert [path.name for path in out.parent.iterdir()] == ["merged"]


@pytest.mark.parametrize("method", ["ties", "linear"])
def test_every_file_that_mergekit_writes_is_there_and_the_same(method: str, world: World, tmp_path: Path) -> None:
    models = [branch(world, "sft-full"), branch(world, "dpo-full")]
    recipe = save(content(method, world["base"], *models), tmp_path / "r.yml")
    theirs, mine = tmp_path / "theirs", tmp_path / "mine"
    run_mergekit(["mergekit-yaml", str(recipe), str(theirs)])
    write_fusion(open_fusion(recipe), mine)
    for path in theirs.iterdir():
        if path.name not in ("model.safetensors", "README.md"):
            assert (mine / path.name).read_bytes() == path.read_bytes(), path.name
    assert (mine / "README.md").read_text().startswith((theirs / "README.md").read_text().replace("# theirs", "# mine"))
    assert {path.name for path in mine.iterdir()} - {path.name for path in theirs.iterdir()} <= {
        "paft.json",
        "generation_config.json",
    }


def test_provenance_names_contents_versions_seed_and_findings(recipe: Path, tmp_path: Path) -> None:
    write_fusion(open_fusion(recipe, seed=3), tmp_path / "out", findings=["normalize: weights cancel."])
    record = json.loads((tmp_path / "out" / "paft.json").read_text())
    assert record["schema_version"] == 1
    assert (record["method"], record["seed"], record["recipe"]) == ("ties", 3, recipe.read_text())
    assert record["findings"] == ["normalize: weights cancel."]
    assert record["versions"]["mergekit"]
    prints = {model["adapter"]["fingerprint"] for model in record["models"] if "adapter" in model}
    assert len(prints) == 2
    card = (tmp_path / "out" / "README.md").read_text()
    assert "weights cancel" in card
    assert all(fingerprint in card for fingerprint in prints)


def test_shards_hold_the_same_tensors(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert merge(recipe, out, "--out-shard-size", "10KB").exit_code == 0
    files = sorted(path.name for path in out.glob("*.safetensors"))
    assert len(files) > 2
    assert all(sum(t.nbytes for t in load_file(out / f).values()) <= 10_000 for f in files)
    assert set(json.loads((out / "model.safetensors.index.json").read_text())["weight_map"].values()) == set(files)
    assert_same(load_all(out), ours(recipe))
    AutoModelForCausalLM.from_pretrained(out)


def test_the_writer_takes_every_dtype_and_shape(tmp_path: Path) -> None:
    tensors = {
        "scalar": torch.tensor(3.0),
        "empty": torch.zeros(0, 4),
        "ü.weight": torch.randn(3, 4).T,
        "half": torch.randn(5).half(),
        "brain": torch.randn(2, 2).bfloat16(),
        "long": torch.arange(4),
        "bool": torch.tensor([True, False]),
    }
    writer = ShardedWriter(tmp_path, tensors, 10**9)
    for name, tensor in tensors.items():
        writer.add(name, tensor)
    writer.finish()
    read = load_file(tmp_path / "model.safetensors")
    assert set(read) == set(tensors)
    assert all(torch.equal(read[name], tensor) and read[name].dtype == tensor.dtype for name, tensor in tensors.items())


def test_sizes() -> None:
    assert [shard_bytes(text) for text in ("5GB", "5G", "5B", "500M", "0.5gb", "1000")] == [
        *(5 * 10**9,) * 3,
        *(5 * 10**8,) * 2,
        1000,
    ]
    for wrong in ("5XB", "", "-1GB", "0", "GB"):
        with pytest.raises(PaftError, match="not a size"):
            shard_bytes(wrong)


def test_neither_a_stale_nor_a_half_written_cache_matters(world: World, tmp_path: Path) -> None:
    """mergekit keys its cache by paths: whatever lies there, and whatever this process merged before, we read the adapter."""
    adapter = make_adapter(world["base"], tmp_path / "adapter", seed=11)
    recipe = save(content("ties", world["base"], reference(world["base"], adapter)), tmp_path / "recipe.yml")
    before = ours(recipe)
    stale = by_mergekit(recipe, tmp_path)
    assert_same(before, stale)
    make_adapter(world["base"], adapter, seed=12)
    retrained = ours(recipe)
    assert not torch.equal(retrained["model.layers.0.mlp.up_proj.weight"], before["model.layers.0.mlp.up_proj.weight"])
    assert_same(by_mergekit(recipe, tmp_path), stale)  # mergekit, with the cache of before
    for cached in (tmp_path / "cache-recipe").rglob("*.safetensors"):
        cached.unlink()
    assert_same(ours(recipe), retrained)


def test_relative_paths_are_meant_from_the_current_folder(world: World, tmp_path: Path, monkeypatch: Any) -> None:
    recipe = tmp_path / "elsewhere" / "recipe.yml"
    recipe.parent.mkdir()
    save(content("ties", Path("base"), reference(Path("base"), Path("./sft"))), recipe)
    monkeypatch.chdir(world.folder)
    assert merge(recipe, tmp_path / "out").exit_code == 0
    assert "github.com" in (tmp_path / "out" / "README.md").read_text()
    save(content("ties", world["base"], reference(world["base"], world["sft"])), recipe)
    monkeypatch.chdir(tmp_path)
    assert_same(load_all(tmp_path / "out"), ours(recipe))
    shutil.copy(recipe, world.folder / "beside.yml")
    save(content("ties", Path("base"), reference(Path("base"), Path("./sft"))), world.folder / "beside.yml")
    told = merge(world.folder / "beside.yml", tmp_path / "never")
    (world.folder / "beside.yml").unlink()
    assert told.exit_code == 2
    assert "run this in" in told.stderr


def test_a_model_without_a_tokenizer_is_merged_with_a_warning(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    recipe = save(content("ties", base, reference(make_model(base, tmp_path / "model"))), tmp_path / "r.yml")
    result = merge(recipe, tmp_path / "out")
    assert result.exit_code == 0
    assert "no tokenizer" in result.stderr


def broken(what: str, world: World, folder: Path) -> dict[str, Any]:
    """A recipe with one mistake in it, or in what it names."""
    base, sft = world["base"], branch(world, "sft")
    good = content("ties", base, sft, branch(world, "dpo"))
    if what == "truncated shard":
        copy = shutil.copytree(world["sft-full"], folder / "model")
        weights = (copy / "model.safetensors").read_bytes()
        (copy / "model.safetensors").write_bytes(weights[:-100])
        return content("ties", base, reference(copy))
    if what == "missing shard":
        copy = make_model(base, folder / "model", max_shard_size="10KB")
        next(iter(sorted(copy.glob("*.safetensors")))).unlink()
        return content("ties", base, reference(copy))
    if what == "wrong base":
        return content("ties", base, reference(make_base(folder / "other", hidden_size=64), world["sft"]))
    if what == "other shapes":
        return content("ties", base, reference(make_base(folder / "other", intermediate_size=64)))
    if what == "pickled":
        other = shutil.copytree(base, folder / "pickled")
        (other / "model.safetensors").rename(other / "pytorch_model.bin")
        return content("ties", base, reference(other))
    if what == "two of one name":
        same = reference(world["sft-full"]) | {"override_architecture": "LlamaForCausalLM"}
        return content("linear", base, reference(world["sft-full"]), same)
    if what == "no number":
        return {**good, "parameters": {"lambda": "much"}}
    edits: dict[str, dict[str, Any]] = {
        "no such method": {"merge_method": "tise"},
        "no such model": {"base_model": str(folder / "nowhere")},
        "two plus signs": {"base_model": "a+b+c"},
        "no models": {"models": None},
        "no weight": {"models": [{"model": sft}]},
        "chat template": {"chat_template": "nothing"},
        "dtype": {"dtype": "float33"},
    }
    return {**good, **edits[what]}


SAID = {
    "truncated shard": "truncated or corrupt",
    "missing shard": "missing",
    "wrong base": "trained on",
    "other shapes": "without a resized vocabulary",
    "pickled": "pickled",
    "two of one name": "cannot tell",
    "no number": "much",
    "no such method": "Did you mean ties?",
    "no such model": "no such folder",
    "two plus signs": "as a mapping",
    "no models": "exactly one of models",
    "no weight": "weight",
    "chat template": "a Jinja template",
    "dtype": "float33",
}


@pytest.mark.parametrize("what", SAID)
def test_a_mistake_is_one_clear_message_and_leaves_nothing(what: str, world: World, tmp_path: Path) -> None:
    recipe = save(broken(what, world, tmp_path), tmp_path / "recipe.yml")
    before = set(tmp_path.iterdir())
    result = merge(recipe, tmp_path / "out")
    assert result.exit_code == 2, result.exception
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert SAID[what] in "\n".join(errors)
    assert "Traceback" not in result.output
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize("text", ["- a\n- b\n", "a: [1", "merge_method: 3\n"])
def test_what_is_no_recipe_is_said_so(text: str, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yml"
    file.write_text(text)
    for recipe in (file, tmp_path / "missing.yml", tmp_path):
        result = merge(recipe, tmp_path / "out")
        assert result.exit_code == 2, result.exception
        assert str(recipe) in result.stderr


def test_a_place_that_is_taken_or_cannot_be_written_is_refused(recipe: Path, tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "file").touch()
    for out, said in (
        (full, "not empty"),
        (full / "file", "a file is there"),
        (full / "file" / "x", "cannot be written"),
    ):
        result = merge(recipe, out)
        assert result.exit_code == 2, result.exception
        assert said in result.stderr
    (tmp_path / "empty").mkdir()
    assert merge(recipe, tmp_path / "empty").exit_code == 0


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_parent_is_said_so(recipe: Path, tmp_path: Path) -> None:
    parent = tmp_path / "parent"
    parent.mkdir(mode=0o500)
    assert "cannot be written" in merge(recipe, parent / "out").stderr


def test_two_merges_into_one_place_do_not_mix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor while the first one gives its folder its name: what it has then must be its own."""
    out, rename = tmp_path / "out", Path.rename

    def second() -> None:
        with pytest.raises(PaftError, match="another merge"), whole_folder(out) as folder:
            (folder / "file").write_text("second")

    def slow(path: Path, to: Path) -> Path:
        second()
        return rename(path, to)

    with whole_folder(out) as folder:
        (folder / "file").write_text("first")
        second()
        monkeypatch.setattr(Path, "rename", slow)
    monkeypatch.undo()
    assert [path.read_text() for path in out.iterdir()] == ["first"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"], "the lock is gone, too"
    with pytest.raises(PaftError, match="not empty"), whole_folder(out):
        pytest.fail("over the first")


def test_a_place_is_the_same_by_another_name(tmp_path: Path) -> None:
    link = tmp_path / "link"
    (tmp_path / "out").mkdir()
    link.symlink_to(tmp_path / "out")
    with whole_folder(link) as folder:
        (folder / "file").write_text("first")
        with pytest.raises(PaftError, match="another merge"), whole_folder(tmp_path / "out"):
            pytest.fail("beside the first")
    assert link.is_symlink()
    assert (tmp_path / "out" / "file").read_text() == "first"


def test_what_lay_at_the_place_already_is_kept_when_the_folder_cannot_get_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, rename = tmp_path / "out", Path.rename
    out.mkdir()
    (out / "recipe.yml").write_text("mine")

    def full(path: Path, to: Path) -> Path:
        if path.is_dir():
            raise OSError(28, "No space left on device")
        return rename(path, to)

    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(OSError, match="No space"), whole_folder(out, ["recipe.yml"]):
        pass
    assert (out / "recipe.yml").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("command", ["merge", "merge --adapter", "fuse", "recipe --materialize"])
def test_a_signal_in_the_middle_leaves_nothing_half_written(
    command: str, signum: signal.Signals, world: World, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.signal(signum, signal.SIG_DFL)
    monkeypatch.setattr(ShardedWriter, "add", lambda *_: os.kill(os.getpid(), signum))
    branches = [f"--{name}={world[name if name != 'preference' else 'dpo']}" for name in ("base", "sft", "preference")]
    arguments = {
        "merge": [str(recipe), str(tmp_path / "out")],
        "merge --adapter": [str(recipe), str(tmp_path / "out"), "--rank=4"],
        "fuse": [str(tmp_path / "out"), "--method=ties", *branches],
        "recipe --materialize": [f"--output={tmp_path / 'r.yml'}", "--method=ties", *branches],
    }[command]
    try:
        result = CliRunner().invoke(paft, [*command.split(), *arguments])
    finally:
        signal.signal(signum, before)
    assert result.exit_code == 128 + signum, result.output
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} <= {recipe.name, "recipe.yml", "lint.json"}
    assert not list(tmp_path.rglob(".*"))


def test_killed_in_the_middle_there_is_no_folder_and_the_next_merge_cleans_up(recipe: Path, tmp_path: Path) -> None:
    script = (
        "import sys, time\nfrom pathlib import Path\n"
        "from paft_plugin.fusion.merge import open_fusion, write_fusion\n"
        "from paft_plugin.fusion.merge.writer import ShardedWriter\n"
        "add = ShardedWriter.add\n"
        "def slow(*args):\n    add(*args)\n    print('one', flush=True)\n    time.sleep(60)\n"
        "ShardedWriter.add = slow\n"
        "write_fusion(open_fusion(Path(sys.argv[1])), Path(sys.argv[2]))\n"
    )
    out = tmp_path / "out"
    process = subprocess.Popen([sys.executable, "-c", script, recipe, out], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    while "one" not in process.stdout.readline():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists()
    assert (tmp_path / ".out.partial").exists()
    assert merge(recipe, out).exit_code == 0
    assert not (tmp_path / ".out.partial").exists()
    assert_same(load_all(out), ours(recipe))


@pytest.mark.parametrize("which", ["base", "dpo"])
@pytest.mark.parametrize("command", ["merge", "merge --adapter", "recipe --materialize"])
def test_what_is_overwritten_while_it_is_merged_is_said_and_nothing_written(
    command: str, which: str, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Old tensors under the new content's fingerprint would prove what never was."""
    for name in ("base", "dpo"):
        shutil.copytree(world[name], tmp_path / name)
    base, adapter = tmp_path / "base", tmp_path / "dpo"
    edit_config(adapter, base_model_name_or_path=str(base))
    (file,) = (tmp_path / which).glob("*.safetensors")
    add = ShardedWriter.add

    def overwriting(*arguments: Any) -> None:
        other = {name: tensor * 1.01 for name, tensor in load_file(file).items()}
        save_file(other, file, metadata={"format": "pt"})
        add(*arguments)

    monkeypatch.setattr(ShardedWriter, "add", overwriting)
    recipe = save(content("task_arithmetic", base, reference(base, adapter)), tmp_path / "r.yml")
    branches = [f"--base={base}", f"--sft={world['sft-full']}", f"--preference={adapter}", "--method=ties"]
    writing = {"recipe --materialize": [f"--output={tmp_path / 'made.yml'}", *branches]}
    result = CliRunner().invoke(paft, [*command.split(), *writing.get(command, [str(recipe), str(tmp_path / "out")])])
    assert result.exit_code == 2, result.output
    assert f"{tmp_path / which}: changed" in result.stderr
    assert not list(tmp_path.glob("*out*"))
    assert not [path for path in tmp_path.rglob("model.safetensors") if path.parent != base]


def test_a_nan_in_an_adapter_is_passed_on_only_knowingly(world: World, tmp_path: Path) -> None:
    """A diverged adapter: named before anything is merged."""
    adapter = shutil.copytree(world["sft"], tmp_path / "adapter")
    tensors = load_file(adapter / "adapter_model.safetensors")
    next(iter(tensors.values()))[0, 0] = float("nan")
    save_file(tensors, adapter / "adapter_model.safetensors")
    recipe = save(content("ties", world["base"], reference(world["base"], adapter)), tmp_path / "r.yml")
    assert "NaN or infinity" in merge(recipe, tmp_path / "out").stderr


def test_the_recipe_that_axolotl_paft_recipe_writes_merges(world: World, tmp_path: Path) -> None:
    options = [f"--{name}={world[name if name != 'preference' else 'dpo']}" for name in ("base", "sft", "preference")]
    made = CliRunner().invoke(paft, ["recipe", *options, "--method=dare_ties", f"--output={tmp_path / 'r.yml'}"])
    assert made.exit_code == 0, made.output
    assert merge(tmp_path / "r.yml", tmp_path / "out").exit_code == 0
    assert yaml.safe_load((tmp_path / "out" / "mergekit_config.yml").read_text())["merge_method"] == "dare_ties"
