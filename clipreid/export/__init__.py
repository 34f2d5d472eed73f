"""A run as one file for other programs: transformers' layout, or ONNX."""

from clipreid.export.merge import bake
from clipreid.export.onnx_file import check_onnx, export_onnx
from clipreid.export.transformers_folder import check_merged, export_merged

__all__ = ["bake", "check_merged", "check_onnx", "export_merged", "export_onnx"]
