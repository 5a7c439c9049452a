"""The network as ONNX files, and the same Predictor running on onnxruntime."""
