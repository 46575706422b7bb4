"""What a generative model's layers know of classes: linear probes, and fine-tuning with a class head.

[1] M. Chen et al.: Generative pretraining from pixels. ICML 2020, is what these modules let one repeat: its figure 2
(`probe`), table 4 (few labels), figure 3 (`checkpoints`) and figure 4 (`compare`).
"""
