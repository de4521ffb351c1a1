"""What ``fastssl bench`` runs, installed as ``fastssl.benchmarks``.

A family of operations is one module here that holds ``FAMILY`` (see ``cases.Family``: its sizes, inputs, truth and
providers) and one line in ``FAMILIES``. Everything else is shared: ``verify`` refuses wrong results, ``timing`` takes
the times, ``memory`` the peak memory, ``limits`` what the machine could do, ``runner`` puts them together, ``worker``
is a process to run that in, ``report`` prints and ``plot`` draws it. ``gpu`` does the same, and verifies every kernel,
in one run on a CUDA machine: there a family is one module more, ``gpu_<family>``.
"""

from __future__ import annotations

# Name, as typed after `fastssl bench`, which is also the module's -> one line for the list of families.
FAMILIES = {
    "nt_xent": "NT-Xent (SimCLR): loss and gradient for two views, [N, D] each",
    "info_nce": "MoCo's loss: N queries [N, D] against a queue of K, loss and gradient of the queries",
    "clip": "CLIP's loss: N images and their texts [N, D], loss and gradients of both and of the scale",
    "siglip": "SigLIP's loss: N images and their texts [N, D], loss and gradients of both, of scale and bias",
    "sup_con": "Supervised contrastive loss: two views of N labelled images [N, 2, D], loss and gradient",
    "soft_target": "DINO's loss: cross-entropy of S student views with T teacher views over K prototypes",
    "sinkhorn_knopp": "Sinkhorn-Knopp (SwAV, DINOv2): assignments of B rows to K prototypes",
    "koleo": "KoLeo (DINOv2): distances to the nearest of N rows [N, D], loss and gradient",
    "prototype_cross_entropy": "Prototype layer and DINO's or iBOT's loss: S student views [B, D], K prototypes",
    "patch_loss": "MAE's loss: normalised pixels of B images' masked patches, loss and gradient",
    "augment": "Random views of uint8 images: SimCLR's pipeline, DINO's multi-crop, against the usual libraries",
    "masking": "MAE's encoder input: masks of L patches, the tokens that stay [B, L, D] with positions, and gradients",
    "unshuffle": "MAE's decoder input: tokens back at their places, mask tokens and positions, and gradients",
    "mae": "Whole training steps of MAE: the same blocks with what others put between them",
    "training": "Whole training steps of SimCLR and DINO: the same network with other libraries' loss and views",
}
