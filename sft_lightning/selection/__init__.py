"""Choose which unlabeled examples to label first, one method per function."""

from sft_lightning.selection.methods import k_center, kmeans_centers, random_choice, typiclust

__all__ = ["k_center", "kmeans_centers", "random_choice", "typiclust"]
