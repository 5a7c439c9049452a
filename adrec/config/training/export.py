"""Config of `adrec export`."""

from adrec.config.base import ConfigPath
from adrec.config.inference.score import RowsConfig


class ExportConfig(RowsConfig):
    """ONNX files of a bundle's encoder and scorer. The rows named are those on which parity with torch is measured."""

    output: ConfigPath
    """Folder to write: encoder.onnx, scorer.onnx, onnx.json."""
    int8: bool = False
    """Also write encoder.int8.onnx: weights and products of 8 bits, a scale for each token."""
