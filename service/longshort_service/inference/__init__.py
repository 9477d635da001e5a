"""The messages of the Open Inference Protocol, generated from proto/inference."""
