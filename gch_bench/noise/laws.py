"""Laws: how a Gaussian field becomes a gate. Pure functions on tensors. Shapes: B batch (or B*C), H x W grid."""

from torch import Tensor


def samplewise_gate(psi_BHW: Tensor, gamma: float) -> Tensor:
    """xi(x) = exp(gamma psi(x)) / mean_y exp(gamma psi(y)): spatial mean exactly one in every sample.

    (B, H, W) -> (B, H, W), > 0. Written as a softmax over the sites, so that no gamma overflows. Source: VKD, theory 1.2.
    """
    psi_BN = psi_BHW.flatten(1)
    return (gamma * psi_BN).softmax(1).view_as(psi_BHW) * psi_BN.shape[1]


def wick_gate(psi_BHW: Tensor, variance_HW: Tensor, gamma: float) -> Tensor:
    """xi(x) = exp(gamma psi(x) - gamma^2/2 Var psi(x)): E xi(x) = 1 and E xi(x) xi(y) = exp(gamma^2 Cov(psi(x), psi(y))).

    psi (B, H, W), its variance (H, W) -> (B, H, W), > 0. Source: VKD, theory 1.2. With white psi: iid log-normal.
    """
    return (gamma * psi_BHW - 0.5 * gamma**2 * variance_HW).exp()


def sites_kept(sites: int, p: float) -> int:
    """How many of `sites` a hard mask with drop probability p keeps: round((1-p) sites), at least one."""
    return max(1, round((1 - p) * sites))


def hard_mask(psi_BHW: Tensor, p: float) -> Tensor:
    """Keep the sites where psi is above its p-quantile, scaled to spatial mean one: (B, H, W) -> (B, H, W), values 0 or N/kept.

    Of N = H*W sites exactly round((1-p) N) (at least one) are kept in every sample. Source: theory 1.2; the per-sample
    quantile and the inverted scaling are definitions of this project.
    """
    flat_BN = psi_BHW.flatten(1)
    sites = flat_BN.shape[1]
    kept = sites_kept(sites, p)
    indices = flat_BN.topk(kept, dim=1).indices
    return flat_BN.new_zeros(flat_BN.shape).scatter_(1, indices, sites / kept).view_as(psi_BHW)
