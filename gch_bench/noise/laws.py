"""Laws: functions that turn a Gaussian field psi into a gate xi. Shapes: B batch (B*C for a gate per channel), H x W grid."""

from torch import Tensor


def samplewise_gate(psi_BHW: Tensor, gamma: float) -> Tensor:
    """xi(x) = exp(gamma psi(x)) / mean_y exp(gamma psi(y)): spatial mean exactly one in every sample.

    (B, H, W) -> (B, H, W), > 0. It is computed as a softmax over the sites, so that no gamma overflows. Source: VKD.
    """
    psi_BN = psi_BHW.flatten(1)
    return (gamma * psi_BN).softmax(1).view_as(psi_BHW) * psi_BN.shape[1]


def wick_gate(psi_BHW: Tensor, variance_HW: Tensor, gamma: float) -> Tensor:
    """xi(x) = exp(gamma psi(x) - gamma^2/2 Var psi(x)): E xi(x) = 1 and E xi(x) xi(y) = exp(gamma^2 Cov(psi(x), psi(y))).

    psi (B, H, W) and its variance (H, W) -> (B, H, W), > 0. With a white psi the gates are iid log-normal. Source: VKD.
    """
    return (gamma * psi_BHW - 0.5 * gamma**2 * variance_HW).exp()


def sites_kept(sites: int, p: float) -> int:
    """How many of `sites` a hard mask with drop probability p keeps: round((1-p) sites), at least one."""
    return max(1, round((1 - p) * sites))


def hard_mask(psi_BHW: Tensor, p: float) -> Tensor:
    """Keep the sites with the largest psi and drop the others: (B, H, W) -> (B, H, W), values 0 or N / kept.

    Of the N = H*W sites of every sample exactly `sites_kept(N, p)` are kept. Their value N / kept makes the spatial mean one.
    Source: VKD for the threshold at a quantile; that it is taken per sample, and the scaling, are definitions of this project.
    """
    flat_BN = psi_BHW.flatten(1)
    sites = flat_BN.shape[1]
    kept = sites_kept(sites, p)
    indices = flat_BN.topk(kept, dim=1).indices
    return flat_BN.new_zeros(flat_BN.shape).scatter_(1, indices, sites / kept).view_as(psi_BHW)
