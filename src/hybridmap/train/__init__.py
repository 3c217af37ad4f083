"""Training: knows a learner and a loader, knows no model and no data set."""

from hybridmap.train.loop import train
from hybridmap.train.optim import LAMB, SGD, AdamW, Muon
from hybridmap.train.recipe import Recipe, TrainConfig
from hybridmap.train.schedule import Cosine
from hybridmap.train.state import TrainState
from hybridmap.train.weights import load_run, read_weights

__all__ = ["LAMB", "SGD", "AdamW", "Cosine", "Muon", "Recipe", "TrainConfig", "TrainState", "load_run", "read_weights", "train"]
