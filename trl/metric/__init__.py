"""Distances between embeddings, mining, and the triplet loss: small, separately usable parts."""

from trl.metric.distances import angular_distance, cosine, pairwise_angular_distance, pairwise_cosine
from trl.metric.mining import hardest_negative, random_negative
from trl.metric.triplet import TripletTerms, norm_penalty, triplet_loss

__all__ = [
    "TripletTerms",
    "angular_distance",
    "cosine",
    "hardest_negative",
    "norm_penalty",
    "pairwise_angular_distance",
    "pairwise_cosine",
    "random_negative",
    "triplet_loss",
]
