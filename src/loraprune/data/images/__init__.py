"""Labelled images from folders, files, the hub and benchmarks known by name, and how they become a model's input.

sources.py     a name -> images with the names of their classes
benchmarks.py  names of benchmarks, as data: where they are stored, and how many images are for training and evaluation
rows.py        images and an image processor -> rows for the Trainer
"""

from loraprune.data.images.rows import ImageRows, check_images, collate, load_processor
from loraprune.data.images.sources import LabelledImages, load_images, open_images

__all__ = ["ImageRows", "LabelledImages", "check_images", "collate", "load_images", "load_processor", "open_images"]
