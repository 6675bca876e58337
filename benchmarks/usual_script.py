"""The script a user would write: torchvision's transforms on Pillow images, a DataLoader with two workers, fp32.

It is no straw man: one pass over the data an epoch and no more, nothing written to disk, the best weights kept in
memory. As a script it trains AlexNet on any folder of class folders: `python benchmarks/usual_script.py FOLDER`.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

Example = tuple[Path, int]


class ImageFiles(Dataset[tuple[Tensor, int]]):
    """Files with their labels, opened as torchvision's ImageFolder opens them."""

    def __init__(self, examples: Sequence[Example], transform: Callable[[Image.Image], Tensor]) -> None:
        self.examples = examples
        self.transform = transform

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.examples[index]
        with path.open("rb") as file:
            image = Image.open(file).convert("RGB")
        return self.transform(image), label


def pipeline(resize: int, crop: int, augment: bool) -> Callable[[Image.Image], Tensor]:
    """Resize, crop and normalise; before that, if asked, flips, rotation, perspective and colour jitter."""
    augmentation = [
        transforms.RandomHorizontalFlip(),
        transforms.RandomVerticalFlip(),
        transforms.RandomRotation(30),
        transforms.RandomPerspective(),
        transforms.ColorJitter(0.4, 0.4, 0.4, 0.1),
    ]
    usual = [
        transforms.Resize(resize),
        transforms.CenterCrop(crop),
        transforms.ToTensor(),
        transforms.Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    ]
    steps: Callable[[Image.Image], Tensor] = transforms.Compose([*augmentation, *usual] if augment else usual)
    return steps


def train(
    model: nn.Module,
    training: Sequence[Example],
    validation: Sequence[Example],
    *,
    resize: int = 256,
    crop: int = 224,
    augment: bool = False,
    batch_size: int = 256,
    lr: float = 1e-3,
) -> Iterator[tuple[float, float, dict[str, Tensor]]]:
    """Train `model`, an epoch for each value taken: validation loss and accuracy, and the best weights so far."""
    training_set = ImageFiles(training, pipeline(resize, crop, augment))
    validation_set = ImageFiles(validation, pipeline(resize, crop, augment=False))
    training_loader = DataLoader(training_set, batch_size=batch_size, shuffle=True, num_workers=2)
    validation_loader = DataLoader(validation_set, batch_size=batch_size, num_workers=2)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=5e-5)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=20, gamma=0.1)
    best_loss, best_weights = float("inf"), copy.deepcopy(model.state_dict())
    while True:
        model.train()
        train_loss, train_right = 0.0, 0
        for images, labels in training_loader:
            optimizer.zero_grad()
            logits = model(images)
            loss = F.cross_entropy(logits, labels)
            loss.backward()  # type: ignore[no-untyped-call] # torch's stubs: the plain word is the point here
            optimizer.step()
            train_loss += loss.item() * len(labels)
            train_right += int((logits.argmax(1) == labels).sum())
        schedule.step()

        model.eval()
        validation_loss, validation_right = 0.0, 0
        with torch.no_grad():
            for images, labels in validation_loader:
                logits = model(images)
                validation_loss += F.cross_entropy(logits, labels, reduction="sum").item()
                validation_right += int((logits.argmax(1) == labels).sum())
        validation_loss /= len(validation_set)
        if validation_loss < best_loss:
            best_loss, best_weights = validation_loss, copy.deepcopy(model.state_dict())
        yield validation_loss, validation_right / len(validation_set), best_weights


def main(folder: Path, epochs: int = 30) -> None:
    """Train AlexNet on every other image of `folder` and validate on the rest."""
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir())
    examples = [(path, label) for label, name in enumerate(classes) for path in sorted((folder / name).iterdir())]
    model = torchvision.models.alexnet(num_classes=len(classes))
    results = zip(range(epochs), train(model, examples[::2], examples[1::2]), strict=False)
    for epoch, (loss, accuracy, best_weights) in results:
        print(f"epoch {epoch + 1}: validation loss {loss:.3f}, accuracy {accuracy:.3f}")
        torch.save(best_weights, "alexnet.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
