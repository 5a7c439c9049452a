"""LightGBM's text of trees, read by us before LightGBM reads it: its own parser trusts every number and crashes on a bad one.

`checked_trees` takes the text apart, looks at every index and length that prediction follows, and writes a text of its own that
holds nothing else: what reaches the native parser was made here. The format is LightGBM's `Tree::ToString` and
`GBDT::SaveModelToString` (version v4), for one class and constant leaves.
"""

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

MOST_LEAVES = 1 << 17
_INTEGERS = re.compile(r"-?\d{1,10}( -?\d{1,10})*\Z")
_OBJECTIVE = re.compile(r"(binary( sigmoid:\d*[1-9]\d*(\.\d+)?)?|lambdarank|regression)?\Z")
"""LightGBM ends with an error of its own where it knows no such objective, or its parameter cannot be."""
_INFO = re.compile(r"(none|\[[-+\d.eE]+:[-+\d.eE]+\]|-?\d+(:-?\d+)*)\Z")
_SIZES = {
    "splits": ("split_feature", "split_gain", "threshold", "decision_type", "left_child", "right_child"),
    "leaves": ("leaf_value",),
}
_FOR_PEOPLE = {"leaf_weight": 1, "leaf_count": 1, "internal_value": 0, "internal_weight": 0, "internal_count": 0}
"""Told in the text, and read by importances alone: leaves (1) or splits (0) of them."""
_WHOLE = ("split_feature", "decision_type", "left_child", "right_child", "leaf_count", "internal_count", "cat_boundaries",
          "cat_threshold")  # fmt: skip


def checked_trees(text: str) -> str:
    """The same trees in a text that is safe to parse. Raises ValueError naming what is wrong."""
    head, *blocks = re.split(r"^Tree=\d+$", text.partition("\nend of trees")[0], flags=re.MULTILINE)
    header = _pairs(head)
    if "version" not in header or header.get("num_class") != "1" or header.get("num_tree_per_iteration") != "1":
        raise ValueError("not the text of trees of one class")
    features = int(_integers(header, "max_feature_idx", 1)[0]) + 1
    infos = header.get("feature_infos", "").split(" ")
    if not 1 <= features <= 1_000_000 or len(infos) != features or not all(_INFO.match(info) for info in infos):
        raise ValueError("its features do not fit each other")
    objective = header.get("objective", "")
    if not _OBJECTIVE.match(objective):
        raise ValueError("an odd objective")
    trees = [f"Tree={number}\n{_tree(_pairs(block), features)}\n\n" for number, block in enumerate(blocks)]
    lines = {
        "version": "v4",
        "num_class": "1",
        "num_tree_per_iteration": "1",
        "label_index": "0",
        "max_feature_idx": str(features - 1),
        **({"objective": objective} if objective else {}),
        "feature_names": " ".join(f"f{place}" for place in range(features)),
        "feature_infos": " ".join(infos),
        "tree_sizes": " ".join(str(len(tree)) for tree in trees),
    }
    return "tree\n" + "".join(f"{key}={value}\n" for key, value in lines.items()) + "\n" + "".join(trees) + "end of trees\n"


def _tree(values: dict[str, str], features: int) -> str:
    """One tree, every place in it looked at."""
    leaves, categories = (int(_integers(values, key, 1)[0]) for key in ("num_leaves", "num_cat"))
    if not 1 <= leaves <= MOST_LEAVES or not 0 <= categories < max(leaves, 1):
        raise ValueError("a tree with an odd number of leaves")
    if values.get("is_linear", "0") != "0":
        raise ValueError("trees with linear leaves")
    splits = leaves - 1
    read: dict[str, NDArray[Any]] = {}
    for key in _SIZES["splits"]:
        read[key] = _numbers(values, key, splits)
    read["leaf_value"] = _numbers(values, "leaf_value", leaves)
    if splits:
        _check_children(read["left_child"], read["right_child"], leaves)
        _check_within("split_feature", read["split_feature"], 0, features)
        _check_within("decision_type", read["decision_type"], 0, 12)
    by_category = (read["decision_type"].astype(np.int64) & 1) == 1
    if categories:
        bounds = _numbers(values, "cat_boundaries", categories + 1)
        words = _numbers(values, "cat_threshold", int(bounds[-1]) if 0 <= bounds[-1] <= 1 << 24 else -1)
        if bounds[0] != 0 or (np.diff(bounds) < 0).any():
            raise ValueError("cat_boundaries that do not rise")
        _check_within("cat_threshold", words, 0, 1 << 32)
        read |= {"cat_boundaries": bounds, "cat_threshold": words}
    _check_within("threshold", read["threshold"][by_category], 0, categories)
    for key, of_leaves in _FOR_PEOPLE.items():
        if values.get(key, "").strip():
            read[key] = _numbers(values, key, leaves if of_leaves else splits)
    shrinkage = _numbers(values, "shrinkage", 1)
    order = (*_SIZES["splits"], *_SIZES["leaves"], *_FOR_PEOPLE, "cat_boundaries", "cat_threshold")
    lines = [f"num_leaves={leaves}", f"num_cat={categories}"]
    lines += [f"{key}={_written(read[key], whole=key in _WHOLE)}" for key in order if key in read]
    return "\n".join([*lines, "is_linear=0", f"shrinkage={_written(shrinkage)}", ""])


def _check_children(left: NDArray[Any], right: NDArray[Any], leaves: int) -> None:
    """Every split but the first, and every leaf, hangs on exactly one split: then no way from the root goes in a circle."""
    children = np.sort(np.concatenate([left, right]).astype(np.int64))
    expected = np.concatenate([np.arange(-leaves, 0), np.arange(1, leaves - 1)])
    if not np.array_equal(children, expected):
        raise ValueError("a tree whose branches do not hang together")


def _check_within(key: str, values: NDArray[Any], low: int, high: int) -> None:
    if ((values < low) | (values >= high) | (values != np.floor(values))).any():
        raise ValueError(f"{key} out of range")


def _pairs(block: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in block.split("\n") if "=" in line)


def _integers(values: dict[str, str], key: str, count: int) -> NDArray[np.int64]:
    text = values.get(key, "")
    if not _INTEGERS.match(text) or text.count(" ") != count - 1:
        raise ValueError(f"no {key}")
    return np.array(text.split(" "), np.int64)


def _numbers(values: dict[str, str], key: str, count: int) -> NDArray[Any]:
    """`count` finite numbers; whole ones as int64."""
    text = values.get(key, "")
    if count == 0 and not text.strip():
        return np.zeros(0, np.int64 if key in _WHOLE else np.float64)
    if count <= 0 or text.count(" ") != count - 1:
        raise ValueError(f"{key} has not the {max(count, 0):,} values that it needs")
    if key in _WHOLE:
        return _integers(values, key, count)
    try:
        read = np.array(text.split(" "), np.float64)
    except ValueError:
        raise ValueError(f"{key} is not all numbers") from None
    if not np.isfinite(read).all():
        raise ValueError(f"{key} is not all finite")
    return read


def _written(values: NDArray[Any], *, whole: bool = False) -> str:
    return " ".join(map(str, values.tolist())) if whole else " ".join(map(repr, values.tolist()))
