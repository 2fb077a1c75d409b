"""Which network an image gets: the one that was given, or the shipped one for what the image shows."""

import itertools

import torch

from ..io import Image
from ..networks import LPN, pretrained
from ..restoration import Choice
from .tasks import fingerprint

AUTO = "auto"
SHIPPED = {"gray": "natural-gray-mixture", "colour": "natural-color-mixture", "CT": "ct"}  # denoisers, by the image


class Networks:
    """The network of every image of a job: the one that is given, or shipped ones for kinds of images.

    "auto" loads, onto the device, one for colour, for gray images and for CT slices, or `instead` what a task prefers
    for a kind: of two names, the first is for the pilot and the second for the descent.
    """

    def __init__(
        self, given: LPN | str, device: str | torch.device = "cpu", instead: dict[str, tuple[str, ...]] | None = None
    ):
        self.names: dict[str, str] = {}
        if given == AUTO:
            names = {kind: (name,) for kind, name in SHIPPED.items()} | (instead or {})
            self.names = {kind: " + ".join(both) for kind, both in names.items()}
            self._models = {kind: [pretrained(name, device) for name in both] for kind, both in names.items()}
        elif not isinstance(given, LPN):
            raise TypeError(f'model must be "{AUTO}" or an LPN, got {given!r}')
        elif len(given.spec.axes) != 2:
            kind = "vectors" if given.spec.is_dense else "volumes; call it, or a solver, on tensors"
            raise ValueError(f"model must be a network of images, got one of {kind}")
        else:
            self._models = {"": [given]}

    def suiting(self, kind: str) -> str:
        """The kind of network for a kind of image."""
        return kind if self.names else ""

    def __getitem__(self, kind: str) -> LPN:
        return self._models[kind][0]

    def chosen(self, kind: str) -> LPN | Choice:
        """What a task solves with."""
        models = self._models[kind]
        return models[0] if len(models) == 1 else Choice(*models, f"models {self.names[kind]}")

    @property
    def all(self) -> list[LPN]:
        return list(itertools.chain(*self._models.values()))

    @property
    def widest(self) -> LPN:
        """The one whose evaluations take most memory per pixel."""
        return max(self.all, key=lambda model: sum(stage.width for stage in model.spec.stages))

    @property
    def fingerprint(self) -> str | dict[str, str]:
        """Digest of each, for the settings of a job."""
        digests = {kind: "+".join(map(fingerprint, models)) for kind, models in self._models.items()}
        return digests if self.names else digests[""]


def kind_of(image: Image) -> str:
    """What distinguishes images of different networks."""
    if len(image.pixels) == 3:
        return "colour"
    return "CT" if image.encoding.kept.get("modality") == "CT" else "gray"
