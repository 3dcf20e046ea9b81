"""Finding assets when nothing is wrong with them."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from resnet8_eval import assets, standin
from resnet8_eval import manifest as listed
from resnet8_eval.assets import (
    DATASET_FOLDER,
    Assets,
    fetch,
    locate,
    survey,
    unchanged,
)
from resnet8_eval.errors import AssetError
from resnet8_eval.manifest import fixtures_dir, load_manifest
from resnet8_eval.store import file_sha256
from tests.small_assets import SmallAssets, put_files

OFFICIAL_MD5 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
    "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
}

Find = Callable[..., Assets]


@pytest.fixture
def small() -> SmallAssets:
    return SmallAssets()


@pytest.fixture
def find(tmp_path: Path, small: SmallAssets, monkeypatch: pytest.MonkeyPatch) -> Find:
    """`locate` in an empty world: a checkout, a cache, fixtures, and nothing on the network."""
    fixtures = tmp_path / "fixtures"
    (fixtures / "standin").mkdir(parents=True)
    (fixtures / "standin" / "standin.h5").write_bytes(small.standin_model)
    monkeypatch.setattr(assets, "fixtures_dir", lambda: fixtures)
    monkeypatch.setattr(assets, "_checkouts", lambda: [tmp_path / "checkout"])
    monkeypatch.setattr(standin, "materialise", lambda folder: put_files(folder, small.files))
    monkeypatch.setattr(assets, "load_manifest", small.manifest)
    monkeypatch.delenv("RESNET8_EVAL_ASSETS", raising=False)
    monkeypatch.setenv("RESNET8_EVAL_OFFLINE", "1")

    def find(kind: str = "real", **options: object) -> Assets:
        settings = {"assets_dir": None, "cache_dir": tmp_path / "cache", **options}
        return locate(kind, **settings)  # type: ignore[arg-type]

    return find


# --- the manifest --------------------------------------------------------------------------------


def test_manifest_has_the_official_files() -> None:
    manifest = load_manifest()
    assert {entry.name: entry.md5 for entry in manifest.real.dataset} == OFFICIAL_MD5
    assert manifest.archive.md5 == "c58f30108f718f92721af3b95e74349a"
    assert manifest.real.model.name == "pretrainedResnet.h5"
    for entry in (manifest.real.model, manifest.archive):
        assert entry.url
        assert entry.url.startswith("https://")
        assert entry.licence


def test_manifest_is_well_formed() -> None:
    manifest = load_manifest()
    standin_files = (manifest.standin.model, *manifest.standin.dataset)
    for entry in (manifest.real.model, manifest.archive, *manifest.real.dataset, *standin_files):
        assert entry.size > 0
        for checksum, length in ((entry.sha256, 64), (entry.md5, 32)):
            assert len(checksum) == length
            assert set(checksum) <= set("0123456789abcdef")
    assert [entry.name for entry in manifest.standin.dataset] == list(OFFICIAL_MD5)


def test_the_stand_in_is_the_one_in_the_manifest(tmp_path: Path) -> None:
    found = locate("stand-in", assets_dir=None, cache_dir=tmp_path)
    assert (found.kind, found.user_model) == ("stand-in", False)
    assert found.model == fixtures_dir() / "standin" / "resnet8_standin.h5"
    assert found.dataset.is_relative_to(tmp_path)


def test_import_is_light() -> None:
    heavy = "{'numpy', 'pooch', 'requests', 'tqdm', 'filelock', 'tarfile'}"
    code = f"import sys, resnet8_eval.assets; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)  # noqa: S603
    assert done.stdout.strip() == b"set()"


# --- where assets are found ----------------------------------------------------------------------


def test_search_order(
    tmp_path: Path, small: SmallAssets, find: Find, monkeypatch: pytest.MonkeyPatch
) -> None:
    argument, variable = tmp_path / "argument", tmp_path / "variable"
    places = [
        argument,
        tmp_path / "checkout" / "assets",
        tmp_path / "shared" / "assets",
        tmp_path / "cache",
    ]
    for place in [*places, variable]:
        small.put_model(place)
        small.put_dataset(place)
    monkeypatch.setenv("RESNET8_EVAL_ASSETS", str(variable))
    assert find(assets_dir=argument).model == argument / "model.h5"
    assert find().model == variable / "model.h5"
    monkeypatch.delenv("RESNET8_EVAL_ASSETS")
    for place in places[1:]:
        found = find()
        assert found.model == place / "model.h5"
        assert found.dataset == place / DATASET_FOLDER
        found.model.unlink()
        found.dataset.rename(place / "away")


def test_model_and_images_may_lie_apart(tmp_path: Path, small: SmallAssets, find: Find) -> None:
    model = small.put_model(tmp_path / "given")
    dataset = small.put_dataset(tmp_path / "cache")
    found = find(assets_dir=tmp_path / "given")
    assert (found.model, found.dataset) == (model, dataset)


def test_the_folder_of_the_batches_itself_may_be_named(
    tmp_path: Path, small: SmallAssets, find: Find
) -> None:
    folder = tmp_path / "any name"
    put_files(folder, small.files)
    model = tmp_path / "own.onnx"
    model.touch()
    found = find(assets_dir=folder, keras_model=model, suffixes=(".onnx",))
    assert (found.dataset, found.model, found.kind) == (folder, model, "real")
    states = {f.name: f.state for f in survey(folder, tmp_path / "cache") if f.kind == "real"}
    assert {states[name] for name in small.files} == {"verified"}
    (folder / "data_batch_3").write_bytes(b"")
    with pytest.raises(AssetError, match="data_batch_3 is damaged"):
        find(assets_dir=folder, keras_model=model, suffixes=(".onnx",))


def test_record(tmp_path: Path, small: SmallAssets, find: Find) -> None:
    small.put_model(tmp_path / "cache")
    small.put_dataset(tmp_path / "cache")
    manifest = small.manifest()
    assert find() == Assets(
        kind="real",
        model=tmp_path / "cache" / "model.h5",
        model_sha256=manifest.real.model.sha256,
        user_model=False,
        dataset=tmp_path / "cache" / DATASET_FOLDER,
        dataset_md5={entry.name: entry.md5 for entry in manifest.real.dataset},
        dataset_sha256={entry.name: entry.sha256 for entry in manifest.real.dataset},
    )


def test_checkout_is_found_from_the_package_and_from_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = Path(assets.__file__).parents[1]
    monkeypatch.chdir(tmp_path)
    assert assets._checkouts() == [here]
    (tmp_path / "fixtures").mkdir()
    (tmp_path / "fixtures" / "assets.json").touch()
    assert assets._checkouts() == [here, tmp_path]


def test_relative_folders_become_absolute(
    tmp_path: Path, small: SmallAssets, find: Find, monkeypatch: pytest.MonkeyPatch
) -> None:
    small.put_model(tmp_path / "cache")
    small.put_archive(tmp_path / "given")
    monkeypatch.chdir(tmp_path)
    found = find(assets_dir=Path("given"), cache_dir=Path("cache"))
    assert found.model == tmp_path / "cache" / "model.h5"
    assert found.dataset == tmp_path / "cache" / DATASET_FOLDER


def test_archive_is_unpacked_once_into_the_cache(
    tmp_path: Path, small: SmallAssets, find: Find, monkeypatch: pytest.MonkeyPatch
) -> None:
    small.put_model(tmp_path / "given")
    small.put_archive(tmp_path / "given")
    found = find(assets_dir=tmp_path / "given")
    assert found.dataset == tmp_path / "cache" / DATASET_FOLDER
    for name, content in small.files.items():
        assert (found.dataset / name).read_bytes() == content

    def again(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(assets, "unpack", again)
    assert find(assets_dir=tmp_path / "given") == found


def test_real_assets_can_be_used_where_the_cache_cannot_be_written(
    tmp_path: Path, small: SmallAssets, find: Find
) -> None:
    small.put_model(tmp_path / "given")
    small.put_dataset(tmp_path / "given")
    (tmp_path / "file").touch()
    unwritable = tmp_path / "file" / "cache"  # not even root can make a folder in a file
    assert find(assets_dir=tmp_path / "given", cache_dir=unwritable).kind == "real"


# --- kinds ---------------------------------------------------------------------------------------


def test_auto_prefers_the_real_assets(tmp_path: Path, small: SmallAssets, find: Find) -> None:
    small.put_model(tmp_path / "cache")
    small.put_dataset(tmp_path / "cache")
    said: list[str] = []
    assert find("auto", announce=said.append).kind == "real"
    assert said == []


def test_auto_turns_to_the_stand_in_and_says_why(tmp_path: Path, find: Find) -> None:
    said: list[str] = []
    found = find("auto", announce=said.append)
    assert found.kind == "stand-in"
    assert found.model == tmp_path / "fixtures" / "standin" / "standin.h5"
    assert len(said) == 1
    assert "\n" not in said[0]
    for part in ("stand-in", "model.h5", DATASET_FOLDER, "RESNET8_EVAL_OFFLINE forbids it"):
        assert part in said[0]


def test_stand_in_is_made_once(
    small: SmallAssets, find: Find, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Path] = []

    def slowly(folder: Path) -> None:
        made.append(folder)
        time.sleep(0.05)
        put_files(folder, small.files)

    monkeypatch.setattr(standin, "materialise", slowly)
    found: list[Assets] = []
    threads = [threading.Thread(target=lambda: found.append(find("stand-in"))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert len(found) == 4
    assert all(each == found[0] for each in found)


@pytest.mark.parametrize("kind", ["real", "stand-in"])
def test_a_users_model_takes_the_models_place(
    tmp_path: Path, small: SmallAssets, find: Find, kind: str
) -> None:
    small.put_dataset(tmp_path / "cache")  # but no model
    mine = tmp_path / "mine.keras"
    mine.write_bytes(small.model)
    found = find(kind, keras_model=mine)
    assert (found.kind, found.model, found.user_model) == (kind, mine, True)
    assert found.model_sha256 == small.manifest().real.model.sha256


# --- folders -------------------------------------------------------------------------------------


def rewrite(path: Path) -> None:
    path.write_bytes(b"another")


def swap(path: Path) -> None:
    path.with_name("other").write_bytes(b"another")
    path.with_name("other").replace(path)


CHANGES = {"written": rewrite, "swapped": swap, "gone": Path.unlink}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_file_that_changed_is_not_lent(tmp_path: Path, change: Callable[[Path], None]) -> None:
    path = tmp_path / "model.h5"
    path.write_bytes(b"as it was")
    sha256 = file_sha256(path)
    with unchanged(path, sha256) as lent:
        assert lent.read_bytes() == b"as it was"
    change(path)
    with (
        pytest.raises(AssetError, match="changed after it had been verified") as caught,
        unchanged(path, sha256),
    ):
        raise AssertionError
    assert sha256 in caught.value.expected


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("said", [None, ValueError("half a file")], ids=["read", "refused"])
def test_a_file_that_changes_while_it_is_lent_is_told(
    tmp_path: Path, change: Callable[[Path], None], said: Exception | None
) -> None:
    """Even where it is put back before anyone looks again, whatever its reader says."""
    path = tmp_path / "model.h5"
    path.write_bytes(b"as it was")

    def read(lent: Path) -> None:
        time.sleep(0.02)  # a time stamp moves every few milliseconds
        change(lent)
        if lent.exists():
            lent.write_bytes(b"as it was")
        if said:
            raise said

    with (
        pytest.raises(AssetError, match="changed after it had been verified") as caught,
        unchanged(path, file_sha256(path)) as lent,
    ):
        read(lent)
    assert caught.value.given == "written to while it was read"


def test_a_saved_model_folder_is_refused_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "saved_model.pb").touch()
    with pytest.raises(AssetError, match="cannot be used as the model") as caught:
        assets.given_model(tmp_path)
    assert caught.value.given == "a folder"
    assert "Load a SavedModel folder in the Keras that wrote it" in caught.value.next_step
    for path, suffixes in ((tmp_path, (".onnx",)), (tmp_path / "mistyped.h5", (".h5", ".keras"))):
        with pytest.raises(AssetError, match="cannot be used as the model") as caught:
            assets.given_model(path, suffixes)
        assert "SavedModel" not in caught.value.next_step


def test_default_cache_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESNET8_EVAL_CACHE", str(tmp_path))
    assert assets.default_cache_dir() == tmp_path
    monkeypatch.delenv("RESNET8_EVAL_CACHE")
    assert assets.default_cache_dir().name == "resnet8-eval"


def test_fixtures_of_a_checkout() -> None:
    assert (fixtures_dir() / "assets.json").is_file()


def test_fixtures_of_an_installed_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "resnet8_eval" / "fixtures").mkdir(parents=True)
    monkeypatch.setattr(listed, "__file__", str(tmp_path / "resnet8_eval" / "manifest.py"))
    assert fixtures_dir() == tmp_path / "resnet8_eval" / "fixtures"


# --- survey --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("find")
def test_survey_of_an_empty_world(tmp_path: Path, small: SmallAssets) -> None:
    findings = survey(None, tmp_path / "cache")
    assert len(findings) == 9 + 8
    assert {f.state for f in findings if f.kind == "real"} == {"missing"}
    made = [f for f in findings if f.kind == "stand-in"]
    assert [f.state for f in made] == ["verified"] + ["missing"] * 7
    assert made[1].detail == "made when needed"
    assert not (tmp_path / "cache" / "stand-in").exists()


@pytest.mark.usefixtures("find")
def test_survey_names_what_is_damaged_and_what_is_missing(
    tmp_path: Path, small: SmallAssets
) -> None:
    small.put_model(tmp_path / "given").write_bytes(b"something else")
    dataset = small.put_dataset(tmp_path / "given")
    (dataset / "data_batch_2").unlink()
    findings = survey(tmp_path / "given", tmp_path / "cache")
    states = {f.name: f.state for f in findings if f.kind == "real"}
    assert states.pop("model.h5") == "damaged"
    assert states.pop("data_batch_2") == "missing"
    assert states.pop("cifar.tar.gz") == "missing"
    assert set(states.values()) == {"verified"}


@pytest.mark.usefixtures("find")
def test_survey_sees_the_archive(tmp_path: Path, small: SmallAssets) -> None:
    archive = small.put_archive(tmp_path / "given")
    findings = survey(tmp_path / "given", tmp_path / "cache")
    by_name = {f.name: f for f in findings if f.kind == "real"}
    assert by_name["cifar.tar.gz"].state == "verified"
    assert str(archive) in by_name["test_batch"].detail


def test_fetch_from_a_complete_cache_downloads_nothing(
    tmp_path: Path, small: SmallAssets, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESNET8_EVAL_OFFLINE", "1")
    monkeypatch.setattr(assets, "load_manifest", small.manifest)
    model, dataset = small.put_model(tmp_path), small.put_dataset(tmp_path)
    assert fetch(tmp_path) == (model, dataset)
