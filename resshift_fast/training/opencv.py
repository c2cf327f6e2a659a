"""OpenCV, with which training degrades photos; restoring needs none."""

try:
    import cv2
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("OpenCV is not installed; pip install 'resshift-fast[train]'") from error

__all__ = ["cv2"]
