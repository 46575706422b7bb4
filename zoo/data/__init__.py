"""Captioned and labelled pictures, read by index.

`shapes` (drawn on the fly), `emoji` (an optional extra), `folder` (the user's own pictures), `mnist` and `cifar` (local
files of the classic labelled sets) each keep the `Dataset` contract of `zoo.interfaces`; `base` says which rows make up
a batch, `transforms` holds the papers' crop laws, and `images` writes picture grids for people. Importing this package
imports nothing else.
"""
