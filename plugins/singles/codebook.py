"""VQ-KD's codebook: unit vectors that start as the clusters of the first batch and then follow those that chose them.

Shape letters: K latents (patches of all pictures), C codes, d channels of a code, W ranks.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

ROWS = 8192       # latents that are compared with all codes at a time
ITERATIONS = 10   # of k-means


class Codebook(nn.Module):
    """Codes (C, d) of length 1. No gradient moves them; all is computed in float32, sums over latents in float64.

    Args:
        codes: C.
        dim: d.
        decay: what a code keeps of itself at each update.
        wait: updates before k-means.

    Attributes:
        weight: (C, d) float32.
        cluster_size: (C,) float32, moving average of how many latents of a step chose each code, over all ranks.
        started: () bool, whether k-means has made the codes.
        updates: () int64, in which it took part.
    """

    def __init__(self, codes: int, dim: int, decay: float, wait: int):
        super().__init__()
        self.decay, self.wait, self._taken, self._sums = decay, wait, False, None
        self._state = None  # (started, updates) on the host, asked of the device once a start of the run
        self.register_buffer("weight", F.normalize(torch.randn(codes, dim), dim=1))
        self.register_buffer("cluster_size", torch.zeros(codes))
        self.register_buffer("started", torch.zeros((), dtype=torch.bool))
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))

    def nearest(self, latents: Tensor) -> Tensor:
        """(...,) int64, the nearest code of each latent (..., d) of length 1; of several as near, the first."""
        return nearest(latents.flatten(0, -2), self.weight).view(latents.shape[:-1])

    @torch.no_grad()
    def begin(self, latents: Tensor) -> bool:
        """Called with the latents (K, d) of a step that trains: once ``wait`` updates are behind, makes the codes their clusters,
        over all ranks. Returns whether that has been done."""
        self._taken = True
        if latents.is_meta:
            return True
        if self._state is None:
            self._state = bool(self.started), int(self.updates)
        started, updates = self._state
        if not started and updates >= self.wait:
            centres, sizes = spherical_kmeans(_of_all_ranks(latents), len(self.weight))
            self.weight.copy_(centres)
            self.cluster_size.copy_(sizes)
            self.started.fill_(True)
            self._state = started, _ = True, updates
        return started

    @torch.no_grad()
    def collect(self, latents: Tensor, codes: Tensor) -> None:
        """Notes which codes (K,) the latents (K, d) chose, for the next ``update``."""
        sums = torch.zeros(len(self.weight), latents.shape[1] + 1, dtype=torch.float64, device=latents.device)
        sums.index_add_(0, codes, F.pad(latents.double(), (0, 1), value=1.0))
        self._sums = sums if self._sums is None else self._sums + sums

    @torch.no_grad()
    def update(self) -> None:
        """Moves each code towards the mean direction of the latents, of all ranks, that chose it; one that none chose stays."""
        if not self._taken:
            return
        self._taken, sums, self._sums = False, self._sums, None
        if self._state is not None:
            self._state = self._state[0], self._state[1] + 1
        self.updates += 1
        if sums is None:
            return
        if _ranks() > 1:
            dist.all_reduce(sums)
        chosen, count = sums[:, :-1], sums[:, -1]
        mean = torch.where(count[:, None] > 0, F.normalize(chosen, dim=1), self.weight.double())
        self.weight.copy_(F.normalize(self.decay * self.weight.double() + (1 - self.decay) * mean, dim=1))
        self.cluster_size.lerp_(count.float(), 1 - self.decay)


def nearest(latents: Tensor, codes: Tensor) -> Tensor:
    """(K,) int64: of unit vectors the code with the largest cosine is the one at the smallest distance."""
    return torch.cat([(part @ codes.t()).argmax(1) for part in latents.split(ROWS)])


def spherical_kmeans(latents: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Clusters of unit vectors by their cosine: (C, d) centres of length 1, and (C,) how many latents each had last.

    Begins at latents that a generator of its own draws, without repeats while there are enough; a cluster that loses all its
    latents keeps its centre.

    Args:
        latents: (K, d) float32, of length 1.
        count: C.
    """
    generator, rows = torch.Generator().manual_seed(0), len(latents)
    first = torch.randperm(rows, generator=generator)[:count]
    if rows < count:
        first = torch.cat([first, torch.randint(rows, (count - rows,), generator=generator)])
    centres = latents[first.to(latents.device)]
    for _ in range(ITERATIONS):
        own = nearest(latents, centres)
        sums = latents.new_zeros(count, latents.shape[1], dtype=torch.float64).index_add_(0, own, latents.double())
        sizes = own.bincount(minlength=count)
        centres = torch.where(sizes[:, None] > 0, F.normalize(sums, dim=1).to(latents.dtype), centres)
    return centres, sizes


def mean_of_all_ranks(rows: Tensor) -> Tensor:
    """(d,), the mean of rows (K, d), of which each rank has as many, over all ranks."""
    mean = rows.mean(0)
    if _ranks() > 1:
        dist.all_reduce(mean)
        mean = mean / _ranks()
    return mean


def _ranks() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _of_all_ranks(rows: Tensor) -> Tensor:
    """(W K, d) in rank order: the order of one process on the whole batch."""
    if _ranks() == 1:
        return rows
    parts = [torch.empty_like(rows) for _ in range(_ranks())]
    dist.all_gather(parts, rows.contiguous())
    return torch.cat(parts)
