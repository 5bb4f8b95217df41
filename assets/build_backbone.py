"""Pretrain the quickstart's small ViT on the pretraining emoji only.

The network starts from random weights and learns three things at once from augmented pictures: which emoji it
sees (in any style), its Unicode subgroup, and the teacher's features of the clean picture.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import timm
import torch
import torch.nn.functional as F
from build_images import Picture, family
from onnx import numpy_helper
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

TEACHER_ARCH = "vit_small_patch14_dinov2.lvd142m"
TEACHER_SIZE = 56
STUDENT_ARCH = "vit_tiny_patch16_224"
STUDENT: dict[str, Any] = {"img_size": 48, "patch_size": 12, "embed_dim": 192, "depth": 6, "num_heads": 3}
WARMUP_STEPS, DECAY_SHARE = 50, 0.4
PICTURE_MEAN, PICTURE_STD = 0.8, 0.3
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Recipe:
    """The settings of the pretraining."""

    epochs: int = 20
    batch: int = 96
    learning_rate: float = 1e-3
    matrix_rate: float = 0.02
    weight_decay: float = 0.05
    distil_weight: float = 5.0
    seed: int = 0


# ---------------------------------------------------------------- teacher


def linear_weights(graph: onnx.GraphProto, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the matrices of the graph's linear layers, which have no names of their own, by module."""
    return {
        node.name.removesuffix("/MatMul").strip("/").replace("/", "."): tensors[node.input[1]].T
        for node in graph.node
        if node.op_type == "MatMul" and node.input[1] in tensors
    }


def position_table(graph: onnx.GraphProto, tensors: dict[str, np.ndarray]) -> np.ndarray:
    """Return the position embedding, which the graph stores as a class part and a patch part."""
    nodes = {node.name: node for node in graph.node}
    parts = (nodes["/backbone/embeddings/Concat_6"], nodes["/backbone/embeddings/Reshape_1"])
    return np.concatenate([tensors[part.input[0]] for part in parts], axis=1)


def block_weights(index: int, tensors: dict[str, np.ndarray], linear: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return one transformer block under timm's names."""
    source, target = f"backbone.encoder.layer.{index}.", f"blocks.{index}."
    attention = source + "attention.attention."
    named = {"attn.proj": "attention.output.dense", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
    weights = {f"{new}.weight": linear[source + old] for new, old in named.items()}
    weights |= {f"{new}.bias": tensors[f"{source}{old}.bias"] for new, old in named.items()}
    weights |= {f"{n}.{p}": tensors[f"{source}{n}.{p}"] for n in ("norm1", "norm2") for p in ("weight", "bias")}
    weights |= {f"ls{n}.gamma": tensors[f"{source}layer_scale{n}.lambda1"] for n in (1, 2)}
    order = ("query", "key", "value")
    weights["attn.qkv.weight"] = np.concatenate([linear[attention + name] for name in order])
    weights["attn.qkv.bias"] = np.concatenate([tensors[f"{attention}{name}.bias"] for name in order])
    return {target + name: value for name, value in weights.items()}


def teacher_state(onnx_file: Path) -> dict[str, Tensor]:
    """Read the teacher's ONNX file as a timm state dict."""
    graph = onnx.load(str(onnx_file)).graph
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    linear = linear_weights(graph, tensors)
    state = {
        "cls_token": tensors["backbone.embeddings.cls_token"],
        "pos_embed": position_table(graph, tensors),
        "patch_embed.proj.weight": tensors["backbone.embeddings.patch_embeddings.projection.weight"],
        "patch_embed.proj.bias": tensors["backbone.embeddings.patch_embeddings.projection.bias"],
        "norm.weight": tensors["backbone.layernorm.weight"],
        "norm.bias": tensors["backbone.layernorm.bias"],
    }
    for index in range(12):
        state |= block_weights(index, tensors, linear)
    return {name: torch.from_numpy(np.array(value, np.float32, order="C")) for name, value in state.items()}


def resized_positions(state: dict[str, Tensor], side: int) -> Tensor:
    """Return the position embedding for a ``side`` x ``side`` patch grid."""
    return resample_abs_pos_embed(state["pos_embed"], new_size=[side, side], num_prefix_tokens=1)


def normalise(images: Tensor) -> Tensor:
    """Apply the input normalisation which the teacher's package uses."""
    return (images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


@torch.inference_mode()
def teacher_features(state: dict[str, Tensor], images: Tensor) -> Tensor:
    """Return the teacher's class tokens of [0, 1] images, each direction scaled to unit variance."""
    model = timm.create_model(TEACHER_ARCH, pretrained=False, num_classes=0, img_size=TEACHER_SIZE).eval()
    side = TEACHER_SIZE // 14
    model.load_state_dict({**state, "pos_embed": resized_positions(state, side)}, strict=True)
    large = (F.interpolate(part, TEACHER_SIZE, mode="bicubic", antialias=True) for part in images.split(128))
    features = torch.cat([model(normalise(part.clamp(0, 1))) for part in large])
    return (features - features.mean(0)) / features.std(0)


# ---------------------------------------------------------------- student


def new_student() -> nn.Module:
    """Create the student with weights large enough for a short training: timm's own start is too small for that."""
    student = timm.create_model(STUDENT_ARCH, pretrained=False, num_classes=0, **STUDENT)
    for name, weight in student.named_parameters():
        if name.startswith("blocks") and weight.ndim == 2:
            nn.init.xavier_uniform_(weight)
    nn.init.normal_(student.cls_token, std=0.3)
    student.pos_embed.data[0, 1:] = 0.3 * wave_positions(STUDENT["img_size"] // STUDENT["patch_size"])
    return student


def wave_positions(side: int) -> Tensor:
    """Return the sine and cosine position table of a ``side`` x ``side`` grid."""
    quarter = STUDENT["embed_dim"] // 4
    speeds = 30.0 ** -(torch.arange(quarter) / quarter)
    axes = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    angles = [axis.reshape(-1, 1) * speeds for axis in axes]
    return torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1)


def orthogonalised(gradient: Tensor, steps: int = 4) -> Tensor:
    """Push the singular values of a matrix towards one by Newton-Schulz steps."""
    tall = gradient.shape[0] > gradient.shape[1]
    matrix = (gradient.T if tall else gradient) / (gradient.norm() + 1e-7)
    for _ in range(steps):
        square = matrix @ matrix.T
        matrix = 3.4445 * matrix + (2.0315 * (square @ square) - 4.7750 * square) @ matrix
    return matrix.T if tall else matrix


class Muon(torch.optim.Optimizer):
    """Momentum with orthogonalised updates for the matrices of the blocks, in fp32.

    PyTorch's own Muon orthogonalises in bfloat16, which is very slow on a CPU without bfloat16 units.
    """

    def __init__(self, matrices: Iterable[nn.Parameter], learning_rate: float, weight_decay: float) -> None:
        """Take the matrices and their settings."""
        super().__init__(matrices, {"lr": learning_rate, "weight_decay": weight_decay, "momentum": 0.95})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """Update every matrix; a qkv matrix counts as three."""
        for group in self.param_groups:
            for weight in group["params"]:
                memory = self.state[weight].setdefault("momentum", torch.zeros_like(weight))
                memory.lerp_(weight.grad, 1 - group["momentum"])
                update = weight.grad.lerp(memory, group["momentum"])
                parts = update.chunk(3) if update.shape[0] == 3 * update.shape[1] else [update]
                scaled = [orthogonalised(part) * max(1.0, part.shape[0] / part.shape[1]) ** 0.5 for part in parts]
                weight.mul_(1 - group["lr"] * group["weight_decay"]).add_(torch.cat(scaled), alpha=-group["lr"])


# ---------------------------------------------------------------- training


def to_tensor(pictures: Sequence[Picture] | np.ndarray) -> Tensor:
    """Return pictures (or their pixels) as a float NCHW tensor in [0, 1]."""
    pixels = pictures if isinstance(pictures, np.ndarray) else np.stack([picture.pixels for picture in pictures])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255


def labels_of(names: Sequence[str]) -> Tensor:
    """Number the distinct names in sorted order."""
    return torch.from_numpy(np.unique(np.array(names), return_inverse=True)[1])


def random_views(images: Tensor) -> Tensor:
    """Crop, stretch, turn and mirror each image on its own, then change its colours a little."""
    count = len(images)
    side = torch.empty(count).uniform_(0.35, 1.2).sqrt()
    stretch = torch.empty(count).uniform_(-0.29, 0.29).exp().sqrt()
    width, height = side * stretch, side / stretch
    mirror = torch.where(torch.rand(count) < 0.5, -1.0, 1.0)
    angle = torch.empty(count).uniform_(-0.2, 0.2)
    shift = torch.empty(count, 2).uniform_(-1, 1) * (1 - side).abs().unsqueeze(1)
    rows = torch.stack([width * angle.cos() * mirror, -height * angle.sin(), shift[:, 0]], 1)
    columns = torch.stack([width * angle.sin() * mirror, height * angle.cos(), shift[:, 1]], 1)
    grid = F.affine_grid(torch.stack([rows, columns], 1), list(images.shape), align_corners=False)
    views = 1 - F.grid_sample(1 - images, grid, align_corners=False)
    return change_colours(views)


def change_colours(images: Tensor) -> Tensor:
    """Scale each image's contrast, brightness and colour channels by random amounts."""
    count = len(images)
    gain = torch.empty(count, 3, 1, 1).uniform_(0.85, 1.15) * torch.empty(count, 1, 1, 1).uniform_(0.75, 1.25)
    grey = images.mean(1, keepdim=True)
    mix = torch.empty(count, 1, 1, 1).uniform_(0.0, 1.3)
    coloured = torch.where(torch.rand(count, 1, 1, 1) < 0.5, images, grey + (images - grey) * mix)
    return ((coloured - 0.5) * gain + 0.5).clamp(0, 1)


def centred(images: Tensor) -> Tensor:
    """Normalise pictures for training, which is much faster so."""
    return (images - PICTURE_MEAN) / PICTURE_STD


@torch.no_grad()
def accept_plain_images(student: nn.Module) -> nn.Module:
    """Move the normalisation of ``centred`` into the patch embedding, so that the student takes [0, 1] images."""
    embedding = student.patch_embed.proj
    embedding.weight.div_(PICTURE_STD)
    embedding.bias.sub_(PICTURE_MEAN * embedding.weight.sum((1, 2, 3)))
    return student


@dataclass(frozen=True)
class Material:
    """The pretraining images with their emoji, subgroup and teacher features."""

    images: Tensor
    emoji: Tensor
    subgroup: Tensor
    teacher: Tensor


def material(pictures: Sequence[Picture], state: dict[str, Tensor]) -> Material:
    """Prepare the pictures for training, with the teacher's features of the clean pictures."""
    images = to_tensor(pictures)
    emoji = labels_of([family(picture.emoji) for picture in pictures])
    subgroup = labels_of([picture.emoji.subgroup for picture in pictures])
    return Material(images, emoji, subgroup, teacher_features(state, images))


class Objectives(nn.Module):
    """The three heads on the student's class token that only the pretraining needs."""

    def __init__(self, data: Material, recipe: Recipe) -> None:
        """Make one linear head for each thing to learn."""
        super().__init__()
        width = STUDENT["embed_dim"]
        self.data, self.recipe = data, recipe
        self.emoji = nn.Linear(width, int(data.emoji.max()) + 1)
        self.subgroup = nn.Linear(width, int(data.subgroup.max()) + 1)
        self.teacher = nn.Linear(width, data.teacher.shape[1])

    def forward(self, tokens: Tensor, chosen: Tensor) -> Tensor:
        """Return the summed loss of the class tokens of the chosen pictures."""
        emoji = F.cross_entropy(self.emoji(tokens), self.data.emoji[chosen], label_smoothing=0.1)
        subgroup = F.cross_entropy(self.subgroup(tokens), self.data.subgroup[chosen], label_smoothing=0.1)
        teacher = F.mse_loss(self.teacher(tokens), self.data.teacher[chosen])
        return emoji + subgroup + self.recipe.distil_weight * teacher


def make_optimisers(student: nn.Module, heads: nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Return Muon for the blocks' matrices and AdamW for everything else."""
    matrices = [weight for name, weight in student.named_parameters() if name.startswith("blocks") and weight.ndim == 2]
    known = {id(weight) for weight in matrices}
    others = [weight for weight in [*student.parameters(), *heads.parameters()] if id(weight) not in known]
    adamw = torch.optim.AdamW(others, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    return [Muon(matrices, recipe.matrix_rate, recipe.weight_decay), adamw]


def rate_factor(step: int, steps: int) -> float:
    """Return the learning-rate factor: a short warm-up, then constant, then a straight fall over the last part."""
    return min(1.0, (step + 1) / WARMUP_STEPS, (steps - step) / (DECAY_SHARE * steps))


Report = Callable[[int, float], None]


def pretrain(student: nn.Module, data: Material, recipe: Recipe, after_epoch: Report) -> nn.Module:
    """Train the student on the pretraining pictures and return it in evaluation mode."""
    heads = Objectives(data, recipe)
    optimisers = make_optimisers(student, heads, recipe)
    steps = recipe.epochs * math.ceil(len(data.images) / recipe.batch)
    schedules = [LambdaLR(optimiser, lambda step: rate_factor(step, steps)) for optimiser in optimisers]
    for epoch in range(recipe.epochs):
        losses = []
        for chosen in torch.randperm(len(data.images)).split(recipe.batch):
            loss = heads(student(centred(random_views(data.images[chosen]))), chosen)
            loss.backward()
            for stepper in (*optimisers, *schedules):
                stepper.step()
            student.zero_grad()
            heads.zero_grad()
            losses.append(loss.item())
        after_epoch(epoch + 1, sum(losses) / len(losses))
    return accept_plain_images(student).eval()
