"""MTCNN with the weights of facenet-pytorch against that package's own networks."""

import pytest
import torch
from other_projects import needs

from resshift_fast.apps.faces.mtcnn import Networks

needs("facenet_pytorch")

from facenet_pytorch.models import mtcnn as theirs  # noqa: E402


@pytest.mark.parametrize("name, size", [("pnet", (40, 27)), ("rnet", (24, 24)), ("onet", (48, 48))])
def test_the_same_weights_give_the_same_faces(name, size):
    """Theirs gives the offsets first and the probabilities, of both classes, last; points are five x, then five y."""
    image = torch.rand(5, 3, *size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    network = {"pnet": theirs.PNet, "rnet": theirs.RNet, "onet": theirs.ONet}[name]()
    with torch.inference_mode():
        expected = [value.double() for value in network.eval()(image)]
        probabilities, offsets, *points = getattr(Networks.from_files(), name)(image)
    wanted = [expected[-1][:, 1], expected[0], *(value.unflatten(1, (2, 5)).mT for value in expected[1:-1])]
    assert len(wanted) == (3 if name == "onet" else 2)
    for found, value in zip([probabilities, offsets, *points], wanted, strict=True):
        assert found.shape == value.shape and (found - value).abs().max() <= 1e-5 * value.abs().max()
