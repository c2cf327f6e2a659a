"""Faces in whole photos: found, restored by a model of aligned faces, and pasted back."""

from resshift_fast.apps.faces.detection import Detector as Detector
from resshift_fast.apps.faces.detection import Face as Face
from resshift_fast.apps.faces.restoring import FaceRestorer as FaceRestorer
from resshift_fast.apps.faces.restoring import Found as Found

__all__ = ["Detector", "Face", "FaceRestorer", "Found"]
