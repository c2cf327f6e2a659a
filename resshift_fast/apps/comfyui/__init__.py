"""Nodes for ComfyUI: copy or link this folder into its `custom_nodes`, in whose Python resshift-fast is installed."""

from resshift_fast.apps.comfyui.nodes import NODE_CLASS_MAPPINGS as NODE_CLASS_MAPPINGS
from resshift_fast.apps.comfyui.nodes import NODE_DISPLAY_NAME_MAPPINGS as NODE_DISPLAY_NAME_MAPPINGS

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
