"""The materializers of PyTorch and scikit-learn keep the contract, and what each promises beyond it."""

import copy
import dataclasses
import functools
import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import skops.io
import torch
from safetensors.torch import load as load_safetensors
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler
from torch import nn
from zenray_materializers.plain import PlainMaterializer
from zenray_materializers.sklearn_estimators import SklearnMaterializer
from zenray_materializers.torch_modules import ModuleMaterializer
from zenray_materializers.torch_tensors import TensorMaterializer, TorchFactMaterializer

from zenray.errors import MaterializerError
from zenray.materializer import find, registry
from zenray.testing import MaterializerContract, round_trip, save


class TestTensor(MaterializerContract):
    materializer = TensorMaterializer

    def values(self) -> Mapping[str, Any]:
        numbers = torch.arange(12.0).reshape(3, 4)
        kinds = ("float64", "float16", "bfloat16", "int64", "int8", "uint8", "bool", "complex64", "float8_e4m3fn")
        return {
            **{kind: torch.tensor([0, 1, 1]).to(getattr(torch, kind)) for kind in kinds},
            "transposed": numbers.T,
            "part": numbers[1:, ::2],
            "zero dimensions": torch.tensor(2.5),
            "empty": torch.empty(0, 3),
            "requires grad": torch.ones(2, requires_grad=True),
            "parameter": nn.Parameter(torch.ones(2)),
            "frozen parameter": nn.Parameter(torch.ones(2), requires_grad=False),
            "conjugate": torch.tensor([1 + 2j], dtype=torch.complex64).conj(),
        }

    def refused(self) -> Mapping[str, Any]:
        return {
            "sparse": torch.eye(2).to_sparse(),
            "no data": torch.ones(2, device="meta"),
            "complex128": torch.ones(2, dtype=torch.complex128),
        }

    def is_equal(self, value: Any, loaded: Any) -> bool:
        plain = value.detach().resolve_conj()
        same = (
            torch.equal(loaded.detach(), plain)
            if "float8" not in str(value.dtype)
            else loaded.tolist() == value.tolist()
        )
        return same and loaded.dtype == value.dtype and loaded.requires_grad == value.requires_grad


def test_safetensors_itself_reads_the_files() -> None:
    value = torch.arange(6, dtype=torch.int16).reshape(2, 3)
    files, _ = save(TensorMaterializer(), value)
    assert torch.equal(load_safetensors(files.contents["tensor.safetensors"])["tensor"], value)


def test_a_loaded_tensor_can_be_changed() -> None:
    assert round_trip(TensorMaterializer(), torch.zeros(2)).add_(1).tolist() == [1.0, 1.0]


def test_a_state_dict_comes_back_with_its_versions() -> None:
    state = nn.BatchNorm1d(3).state_dict()
    loaded = round_trip(PlainMaterializer(), state)
    assert list(loaded) == list(state)
    assert loaded._metadata == state._metadata
    nn.BatchNorm1d(3).load_state_dict(loaded)


class TestTorchFact(MaterializerContract):
    materializer = TorchFactMaterializer

    def values(self) -> Mapping[str, Any]:
        facts = (torch.float32, torch.device("cuda:1"), torch.Size([1, 2]), torch.channels_last, torch.strided)
        return {str(fact): fact for fact in facts}


class Net(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.shape = (width, width)
        self.first = nn.Linear(3, width)
        self.norm = nn.BatchNorm1d(width)
        self.second = nn.Linear(width, width)
        self.third = nn.Linear(width, width)
        self.third.weight = self.second.weight
        self.act = torch.relu
        self.all = [self.first, self.second]
        self.scale = torch.ones(width)
        self.register_buffer("steps", torch.zeros(1), persistent=False)
        self.register_parameter("nothing", None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.third(self.act(self.second(self.norm(self.all[0](x))))) * self.scale + self.steps


class WithLambda(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.act = lambda x: x


class TestModule(MaterializerContract):
    materializer = ModuleMaterializer

    def values(self) -> Mapping[str, Any]:
        torch.manual_seed(0)
        frozen = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.ReLU(), nn.Linear(4, 2)).eval()
        frozen[0].weight.requires_grad_(False)
        layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
        return {
            "linear": nn.Linear(3, 2),
            "sequential": frozen,
            "own": Net(4),
            "convolution": nn.Sequential(nn.Conv1d(3, 2, 1), nn.GELU(), nn.Flatten()),
            "lstm": nn.LSTM(3, 4, 2, bidirectional=True),
            "transformer": nn.Sequential(nn.Linear(3, 4), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)),
        }

    def refused(self) -> Mapping[str, Any]:
        hooked = nn.Linear(2, 2)
        hooked.register_forward_hook(print)

        class Local(nn.Module):
            pass

        return {
            "lambda": WithLambda(),
            "hook": hooked,
            "local": Local(),
            "parametrized": nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)),
        }

    def is_equal(self, value: Any, loaded: Any) -> bool:
        assert loaded.training == value.training
        flags = [(name, p.requires_grad) for name, p in value.named_parameters()]
        assert [(name, p.requires_grad) for name, p in loaded.named_parameters()] == flags
        x = torch.linspace(-1, 1, 15).reshape(5, 3)
        if isinstance(value[0] if isinstance(value, nn.Sequential) else value, nn.Conv1d):
            x = x.reshape(1, 3, 5)
        outputs = [copy.deepcopy(model).eval()(x) for model in (value, loaded)]
        if isinstance(outputs[0], tuple):
            outputs = [output[0] for output in outputs]
        return torch.equal(*outputs) and str(loaded) == str(value)


def test_shared_parts_of_a_module_stay_shared_and_train_on() -> None:
    loaded = round_trip(ModuleMaterializer(), Net(4))
    assert loaded.third.weight is loaded.second.weight
    assert loaded.all[0] is loaded.first
    assert list(loaded.state_dict()) == list(Net(4).state_dict())
    assert loaded.width == 4
    assert loaded.shape == (4, 4)
    loaded(torch.ones(2, 3)).sum().backward()
    assert loaded.second.weight.grad is not None


def test_an_error_about_a_module_names_the_attribute_and_the_way_out() -> None:
    with pytest.raises(MaterializerError, match=r"'act'.*WithLambda.*state_dict\(\)"):
        save(ModuleMaterializer(), WithLambda())


@functools.cache
def _estimators() -> dict[str, Any]:
    source = np.random.default_rng(0)
    x = source.normal(size=(120, 4))
    y = (x[:, 0] + x[:, 1] > 0).astype(int)
    frame = pd.DataFrame({"a": x[:, 0], "b": x[:, 1], "c": np.where(x[:, 2] > 0, "u", "v")})
    columns = ColumnTransformer([("numbers", StandardScaler(), ["a", "b"]), ("texts", OneHotEncoder(), ["c"])])
    return {
        "not fitted": LogisticRegression(C=0.5),
        "boosting": HistGradientBoostingClassifier(max_iter=5, random_state=0).fit(x, y),
        "forest": RandomForestClassifier(3, random_state=0).fit(x, y),
        "pipeline": make_pipeline(StandardScaler(), FunctionTransformer(np.abs), LogisticRegression()).fit(x, y),
        "columns": make_pipeline(columns, LogisticRegression()).fit(frame, y),
        "search": GridSearchCV(LogisticRegression(), {"C": [0.1, 1.0]}, cv=2).fit(x, y),
        "texts": TfidfVectorizer(stop_words=["and", "or", "the"]).fit(["a cat and a dog", "the dog or the bird"]),
    }


class OwnTransformer(TransformerMixin, BaseEstimator):
    def fit(self, x: Any, y: Any = None) -> "OwnTransformer":
        self.mean_ = 1.0
        return self

    def transform(self, x: Any) -> Any:
        return x


class OwnSklearnMaterializer(SklearnMaterializer):
    trusted = (*SklearnMaterializer.trusted, OwnTransformer.__module__ + ".")


class TestSklearn(MaterializerContract):
    materializer = SklearnMaterializer

    def values(self) -> Mapping[str, Any]:
        # The search keeps how long its fits took: no two are equal.
        return {name: estimator for name, estimator in _estimators().items() if name != "search"}

    def refused(self) -> Mapping[str, Any]:
        return {
            "own": make_pipeline(OwnTransformer(), LogisticRegression()),
            "lambda": FunctionTransformer(lambda x: x),
        }

    def is_equal(self, value: Any, loaded: Any) -> bool:
        return _predictions(value) == _predictions(loaded)


def _predictions(estimator: Any) -> Any:
    if isinstance(estimator, TfidfVectorizer):
        return estimator.transform(["a dog", "the bird"]).toarray().tolist()
    if not hasattr(estimator, "classes_"):
        return estimator.get_params()
    x = np.random.default_rng(1).normal(size=(20, 4))
    if "columntransformer" in getattr(estimator, "named_steps", ()):
        x = pd.DataFrame({"a": x[:, 0], "b": x[:, 1], "c": np.where(x[:, 2] > 0, "u", "v")})
    return estimator.predict_proba(x).tolist()


def test_a_search_predicts_the_same() -> None:
    search = _estimators()["search"]
    assert _predictions(round_trip(SklearnMaterializer(), search)) == _predictions(search)


def test_estimators_of_ones_own_are_named_and_can_be_trusted() -> None:
    value = make_pipeline(OwnTransformer().fit(None), StandardScaler())
    with pytest.raises(MaterializerError, match=r"OwnTransformer.*trusted"):
        save(SklearnMaterializer(), value)
    assert round_trip(OwnSklearnMaterializer(), value)[0].mean_ == 1.0


def test_skops_itself_reads_the_files() -> None:
    files, _ = save(SklearnMaterializer(), _estimators()["pipeline"])
    loaded = skops.io.loads(files.contents["estimator.skops"])
    assert _predictions(loaded) == _predictions(_estimators()["pipeline"])


def test_an_estimator_of_another_version_comes_with_a_warning() -> None:
    files, metadata = save(SklearnMaterializer(), LogisticRegression())
    with pytest.warns(UserWarning, match="0.1"):
        SklearnMaterializer().load(files.reader(), LogisticRegression, metadata | {"sklearn": "0.1"})


def test_a_stored_estimator_cannot_call_functions() -> None:
    files, metadata = save(SklearnMaterializer(), StandardScaler().fit([[1.0], [2.0]]))
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(files.contents["estimator.skops"])) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name == "schema.json":
                assert b'"__class__":"ndarray","__module__":"numpy"' in data
                data = data.replace(b'"__class__":"ndarray"', b'"__class__":"load"')
            new.writestr(name, data)
    files.contents["estimator.skops"] = target.getvalue()
    with pytest.raises(MaterializerError):
        SklearnMaterializer().load(files.reader(), StandardScaler, metadata)


@dataclasses.dataclass
class WithArrays:
    name: str
    weights: np.ndarray
    table: pa.Table


def test_values_of_other_types_inside_plain_values_become_files_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("hello")
    array = np.arange(6.0).reshape(2, 3)
    table = pa.table({"x": [1, 2]})
    value = {
        "arrays": [array, {"deeper": array[0]}],
        "made": WithArrays("w", array, table),
        "tuple": (pd.DataFrame({"a": [1]}), pl.DataFrame({"b": [2]}), torch.ones(2)),
        "file": tmp_path / "note.txt",
        "scalars": [np.float32(1.5), np.int8(3), pd.Timestamp("2026-01-31", tz="Europe/Berlin"), torch.float32],
    }
    files, metadata = save(PlainMaterializer(), value)
    assert len(files.contents) == 1 + 8
    loaded = PlainMaterializer().load(files.reader(), dict, metadata)
    np.testing.assert_array_equal(loaded["arrays"][1]["deeper"], array[0])
    assert loaded["made"].name == "w"
    np.testing.assert_array_equal(loaded["made"].weights, array)
    assert loaded["made"].table.equals(table)
    assert [type(part) for part in loaded["tuple"]] == [pd.DataFrame, pl.DataFrame, torch.Tensor]
    assert loaded["file"].name == "note.txt"
    assert loaded["file"].read_text() == "hello"
    assert loaded["scalars"] == value["scalars"]
    assert list(map(type, loaded["scalars"])) == list(map(type, value["scalars"]))  # type: ignore[call-overload]


def test_bases_are_found_before_the_kind_of_a_dataclass() -> None:
    @dataclasses.dataclass
    class Tuned(BaseEstimator):
        alpha: float = 1.0

    assert find(Tuned, registry.table()) == "zenray_materializers.sklearn_estimators:SklearnMaterializer"
