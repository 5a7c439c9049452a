"""Calendar parts of a timestamp in the audience's time zone, daylight saving included."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from adrec.errors import DataError
from adrec.specs import CalendarSpec

_CARDINALITY = {"hour": 24, "weekday": 7, "weekend": 2}
_CYCLE = ("hour_sin", "hour_cos", "weekday_sin", "weekday_cos")


def calendar_cardinalities(spec: CalendarSpec) -> dict[str, int]:
    """Categorical names with their number of codes; code 0 is for missing timestamps."""
    return {f"{spec.column}_{part}": _CARDINALITY[part] + 1 for part in _CARDINALITY}


def calendar_numeric_names(spec: CalendarSpec) -> list[str]:
    """Names of the cyclic inputs, in order."""
    return [f"{spec.column}_{part}" for part in _CYCLE]


def calendar_parts(spec: CalendarSpec, column: pa.Array) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """Hour, weekday and weekend int32 (N, 3) as 1 + value, 0 where missing, and cyclic inputs float64 (N, 4).

    Monday is weekday 0. The hour's cycle includes minutes. Raises DataError when the column is no timestamp.
    """
    if not pa.types.is_timestamp(column.type) and not pa.types.is_null(column.type):
        raise DataError(f"features: column '{spec.column}' is {column.type}, expected a timestamp.")
    aware = column.cast(pa.timestamp("us", tz="UTC"))
    local = pc.local_timestamp(aware.cast(pa.timestamp("us", tz=spec.time_zone)))
    missing = local.is_null().to_numpy(zero_copy_only=False)

    def part(values: pa.Array) -> NDArray[np.int64]:
        return np.asarray(pc.fill_null(values, 0).to_numpy(zero_copy_only=False), dtype=np.int64)

    hour, minute, weekday = part(pc.hour(local)), part(pc.minute(local)), part(pc.day_of_week(local))
    codes = np.stack([hour, weekday, weekday >= 5], axis=1).astype(np.int64) + 1
    codes[missing] = 0
    day = 2 * np.pi * (hour + minute / 60) / 24
    week = 2 * np.pi * (weekday + hour / 24) / 7
    cycle = np.stack([np.sin(day), np.cos(day), np.sin(week), np.cos(week)], axis=1)
    cycle[missing] = 0.0
    return codes.astype(np.int32), cycle
