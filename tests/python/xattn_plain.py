"""XAttention's estimators in torch's float64, one sequence and head at a time, straight from their
definitions (src/kernels/xattn/estimator.h)."""

import math

import torch

QUERY_BLOCK = 128


def means_of(x, size):
    return torch.stack([part.mean(0) for part in x.split(size)])


def shares(logits, seen):
    """Softmax of rows over what is seen; rows that see nothing are 0."""
    logits = logits.masked_fill(~seen, -math.inf)
    return logits.softmax(-1).masked_fill(~seen.any(-1, keepdim=True), 0.0)


def by_blocks(rows, row_block, column_block, live, shape):
    """The mean over each query block's live rows of what its rows give to each key block."""
    total = torch.zeros(shape, dtype=torch.float64)
    columns = torch.zeros(rows.shape[0], shape[1], dtype=torch.float64)
    columns.index_add_(1, column_block, rows)
    total.index_add_(0, row_block, columns)
    count = torch.zeros(shape[0], dtype=torch.float64).index_add_(0, row_block, live.double())
    return total / count.clamp(min=1)[:, None]


class Sequence:
    """n queries and m keys of one head in float64."""

    def __init__(self, q, k, block_size, causal, scale):
        self.q, self.k, self.block_size, self.causal, self.scale = q, k, block_size, causal, scale
        self.n, self.m = len(q), len(k)
        self.shape = math.ceil(self.n / QUERY_BLOCK), math.ceil(self.m / block_size)

    def seen(self, rows, keys):
        """Whether keys [C] are seen from rows [R]."""
        if not self.causal:
            return torch.ones(len(rows), len(keys), dtype=torch.bool)
        return keys[None] <= (self.m - self.n + rows)[:, None]

    def finish(self, logits, rows, row_block, keys):
        seen = self.seen(rows, keys)
        live = seen.any(-1)
        columns = keys // self.block_size
        return by_blocks(shares(logits, seen), row_block, columns, live, self.shape)

    def strided(self, size, reverse):
        def groups(x):
            padded = torch.nn.functional.pad(x, (0, 0, 0, -len(x) % size))
            return padded.view(-1, size, x.shape[1])

        q, k = groups(self.q), groups(self.k)
        logits = torch.einsum("rsd,csd->rc", q.flip(1) if reverse else q, k) * self.scale / size
        first = torch.arange(len(q)) * size
        last = (first + size - 1).clamp(max=self.n - 1)
        return self.finish(logits, last, first // QUERY_BLOCK, torch.arange(len(k)) * size)

    def exact(self, queries, rows, bias=None):
        logits = queries @ self.k.T * self.scale
        if bias is not None:
            norms = self.k.square().sum(-1)
            logits = logits + 0.25 * bias[:, None] * norms[None] * self.scale**2
        return self.finish(logits, rows, rows // QUERY_BLOCK, torch.arange(self.m))

    def pooled(self, size, with_bias):
        groups = self.q.split(size)
        spread = torch.stack([g.var(0, unbiased=False).mean() for g in groups])
        last = (torch.arange(len(groups)) * size + size - 1).clamp(max=self.n - 1)
        return self.exact(means_of(self.q, size), last, spread if with_bias else None)

    def sampled(self, size):
        rows = torch.arange(0, self.n, size) + size // 2
        rows = rows.clamp(max=self.n - 1)
        return self.exact(self.q[rows], rows)

    def outlier(self):
        rows = []
        for first in range(0, self.n, QUERY_BLOCK):
            part = self.q[first : first + QUERY_BLOCK]
            rows.append(first + (part - part.mean(0)).square().sum(-1).argmax())
        rows = torch.stack([torch.as_tensor(r) for r in rows])
        return self.exact(self.q[rows], rows)

    def against_means(self, queries, rows):
        keys = torch.arange(0, self.m, self.block_size)
        logits = queries @ means_of(self.k, self.block_size).T * self.scale
        return self.finish(logits, rows, rows // QUERY_BLOCK, keys)

    def term(self, text):
        name, _, size = text.partition(":")
        size = int(size) if size else None
        match name:
            case "antidiagonal" | "diagonal":
                return self.strided(size, name == "antidiagonal")
            case "pooled" | "pooled_plain":
                return self.pooled(size, name == "pooled")
            case "sampled":
                return self.sampled(size)
            case "outlier":
                return self.outlier()
            case "mean":
                return self.against_means(self.q, torch.arange(self.n))
            case "block_mean":
                last = torch.arange(self.shape[0]) * QUERY_BLOCK + QUERY_BLOCK - 1
                means = means_of(self.q, QUERY_BLOCK)
                return self.against_means(means, last.clamp(max=self.n - 1))
        raise AssertionError(name)

    def scores(self, estimator):
        total, weights = torch.zeros(self.shape, dtype=torch.float64), 0.0
        for part in estimator.split("+"):
            weight, star, term = part.rpartition("*")
            weight = float(weight) if star else 1.0
            total += weight * self.term(term)
            weights += weight
        return total / weights


def block_scores(q, k, cu_q, cu_k, longest, estimator, block_size, causal, scale=None):
    """As xattn_block_scores, float64."""
    heads, group = q.shape[1], q.shape[1] // k.shape[1]
    scale = 1.0 / math.sqrt(q.shape[2]) if scale is None else scale
    shape = math.ceil(longest[0] / QUERY_BLOCK), math.ceil(longest[1] / block_size)
    out = torch.zeros(len(cu_q) - 1, heads, *shape, dtype=torch.float64)
    for b in range(len(cu_q) - 1):
        for h in range(heads):
            qs = q[cu_q[b] : cu_q[b + 1], h].double()
            ks = k[cu_k[b] : cu_k[b + 1], h // group].double()
            if len(qs) and len(ks):
                found = Sequence(qs, ks, block_size, causal, scale).scores(estimator)
                out[b, h, : found.shape[0], : found.shape[1]] = found
    return out


def visible(n, m, rows, columns, block_size, causal):
    """Which blocks of a sequence any row of each query block sees: bool [rows, columns]."""
    first = torch.arange(rows) * QUERY_BLOCK
    last = (first + QUERY_BLOCK - 1).clamp(max=n - 1)
    begins = torch.arange(columns) * block_size
    end = (m - n + last if causal else torch.full((rows,), m - 1))[:, None]
    return (begins[None] <= end) & (begins[None] < m) & (first < n)[:, None]


def forced(i, n, m, block_size, sink, local, causal):
    """Blocks that are kept whatever their scores: a range at the front, one at the end."""
    first = m - n + i * QUERY_BLOCK  # position of its first row
    last = m - n + min(n, (i + 1) * QUERY_BLOCK) - 1
    end = math.ceil(m / block_size) if not causal else max(0, last // block_size + 1)
    if not local or last < 0:
        return range(min(sink, end)), range(0)
    if causal:
        own = min(max(first + 1, 0) // block_size, end - 1)
        return range(min(sink, end)), range(max(own - local + 1, 0), end)
    begin = max(first, 0) // block_size - local + 1
    near = range(max(begin, 0), min(last // block_size + local, end))
    return range(min(sink, end)), near


def select(scores, threshold, n, m, block_size=128, sink=1, local=1, causal=True, rule="share"):
    """As xattn_select of one sequence and head, by sorting: bool [nQ, nK]."""
    mask = torch.zeros(scores.shape, dtype=torch.bool)
    seen = visible(n, m, *scores.shape, block_size, causal)
    for i, row in enumerate(scores.tolist()):
        blocks = seen[i].nonzero().flatten().tolist()
        if not blocks:
            continue
        ranges = forced(i, n, m, block_size, sink, local, causal)
        kept = [j for j in blocks if any(j in part for part in ranges)]
        mask[i, kept] = True
        total, held = sum(row[j] for j in blocks), sum(row[j] for j in kept)
        for j in sorted(set(blocks) - set(kept), key=lambda j: (-row[j], j)):
            if rule == "of_max":
                mask[i, j] = row[j] >= threshold * max(row[x] for x in blocks)
            elif row[j] > 0 and (threshold >= 1 or held < threshold * total):
                mask[i, j] = True
                held += row[j]
            else:
                break
    return mask
