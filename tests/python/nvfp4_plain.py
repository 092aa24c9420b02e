"""NVFP4 in plain torch operations, one formula after the other, and published vectors: what the
tests of the operations compare with."""

import torch

LARGEST = torch.finfo(torch.float32).max
VALUES = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])  # of the sixteen codes
VALUES = torch.cat([VALUES, -VALUES])
OFFSETS = {"sweep": [0, -1, 1, 4, 5], "full_sweep": [0, -3, -2, -1, 1, 2, 3, 4, 5, 6, 7]}
SIGNS = [1 - 2 * (0xD7E8 >> k & 1) for k in range(16)]


def top_of(rule, bound=0, unbiased=False):
    bound = bound or (448 if rule.startswith("static") else 256)
    top = (4 if rule == "static_4" else 6) * bound
    return torch.tensor(top * 16 / 17 if unbiased else top, dtype=torch.float32)


def e4m3(x):
    return x.clamp(max=448).to(torch.float8_e4m3fn)


def nearest_codes(x):
    """E2M1 codes: how many midpoints of the grid lie below, those of odd codes included."""
    a = x.abs()
    magnitude = sum((a > low).int() for low in (0.25, 1.25, 2.5, 5.0))
    magnitude += sum((a >= high).int() for high in (0.75, 1.75, 3.5))
    return magnitude + 8 * ((x < 0) & (magnitude > 0))


def candidates(rule, bmax, enc):
    if rule == "static_4":
        return [e4m3(bmax / 4 * enc)]
    b = bmax / 6 * enc
    if rule == "static_6":
        return [e4m3(b)]
    if rule == "four_over_six":
        return [e4m3(b), e4m3(b * 1.5)]
    codes = e4m3(b).view(torch.uint8).int()
    offsets = OFFSETS[rule]
    return [(codes + o).clamp(0, 0x7E).to(torch.uint8).view(torch.float8_e4m3fn) for o in offsets]


def encode(blocks, scale, dec):
    """Codes of blocks [..., E] with scales [...]."""
    step = dec * scale.float()
    inv = torch.where(step == 0, torch.zeros(()), (1 / step).clamp(max=LARGEST))
    return nearest_codes(blocks * inv.unsqueeze(-1))


def error(blocks, codes, scale, amax, top, metric, weight):
    value = VALUES[codes.long()] * scale.float().unsqueeze(-1)
    difference = value * amax.unsqueeze(-1) / top - blocks
    terms = (difference.square() if metric == "mse" else difference.abs()) * weight
    if metric == "abs_max":
        return terms.amax(-1)
    total = torch.zeros(terms.shape[:-1])
    for i in range(terms.shape[-1]):
        total = total + terms[..., i]
    return total


def plain_quantize(
    x, rule, metric="mse", amax=None, tile_2d=False, hadamard=False, bound=0, w=None
):
    """codes [rows, K / 2], scale bytes [rows, K / 16], multiplier; x [rows, K] finite, float32."""
    rows, k = x.shape
    weight = torch.ones(k) if w is None else w
    blocks = x.reshape(rows, k // 16, 16)
    if hadamard:
        blocks = plain_hadamard(blocks)
    top = top_of(rule, bound)
    amax = blocks.abs().max() if amax is None else amax
    enc = (top / amax).clamp(max=LARGEST) if amax > 0 else torch.ones(())
    dec = 1 / enc
    weight = weight.reshape(k // 16, 16)
    if tile_2d:
        tiles = blocks.reshape(rows // 16, 16, k // 16, 16).transpose(1, 2)
        groups, weight = tiles.reshape(rows // 16, k // 16, 256), weight.repeat(1, 16)
    else:
        groups = blocks
    best, least = None, None
    for scale in candidates(rule, groups.abs().amax(-1), enc):
        found = error(
            groups, encode(groups, scale, dec), scale, amax[None, None], top, metric, weight
        )
        take = torch.ones_like(found, dtype=torch.bool) if best is None else found < least
        old = (scale, found) if best is None else (best, least)
        best = torch.where(take, scale.view(torch.uint8), old[0].view(torch.uint8))
        best = best.view(torch.float8_e4m3fn)
        least = torch.where(take, found, old[1])
    if tile_2d:
        best = best.view(torch.uint8).repeat_interleave(16, 0).view(torch.float8_e4m3fn)
    codes = encode(blocks, best, dec).reshape(rows, k)
    packed = (codes[:, ::2] + codes[:, 1::2] * 16).to(torch.uint8)
    return packed, best.view(torch.uint8), amax / top


def plain_hadamard(blocks):
    signs = torch.tensor(SIGNS, dtype=torch.float64)
    matrix = torch.tensor(
        [[(-1.0) ** bin(j & k).count("1") for k in range(16)] for j in range(16)],
        dtype=torch.float64,
    )
    rotated = (blocks.double() * signs) @ matrix / 4
    return rotated.float().bfloat16().float()


A = [10, 20, 30, 40, 0, 0, 0, 0, -10, -20, -30, -40, 5, -5, 15, -15]
E = [0.5, -1.25, 2.75, -0.015625, 3.125, 1.5, -2.5, 0.75]
E += [-3.125, 0.25, 1, -0.125, 2, -1.75, 0.0625, 3]
G = [2**-17 * (i - 7.5) / 8 for i in range(15)] + [1.10864639e-5]
H = [2**-19, -(2**-20)] + [0] * 14
L = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5, 6]
L += [-x for x in L]
K = [-2.109375, -1.046875, 0.0339355469, 1.640625, -3.59375, -1.046875, 2.203125, 0.44921875]
K += [-3.875, 1.1171875, -2, -0.62109375, 0.7265625, 2.703125, -2.125, 3.84375]
# x, amax, (scale, codes) of static_6, scales and codes of 6 and 4, what mse, mae and abs_max take
VECTORS = {
    "A": (A, 40, "7e", "5376 0000 dbfe 91c4", "78", "7c", "5376 0000 dbfe a2c4",
          "4265 0000 caed 91b3", "444"),
    "B": (A, 100, "73", "5376 0000 dbfe a2c4", "6d", "72", "5376 0000 dbfe 91c4",
          "4265 0000 caed 91b3", "444"),
    "C": ([1] * 16, 1, "7e", "77" * 8, "78", "7c", "77" * 8, "66" * 8, "666"),
    "E": (E, 3.125, "7e", "c207 573e 1f04 d670", "78", "7c", "c207 573e 1f04 d670",
          "b106 462d 1e03 c560", "464"),
    "F": (E, 2688, "30", "c207 573e 1f04 e670", "2a", "2e", "c207 573e 1f04 d670",
          "b106 462d 1e03 c560", "444"),
    "G": (G, 1, "03", "ddcc ab09 1032 4475", "01", "02", "efde cd9a 2154 6576",
          "cdbc ab09 1032 4364", "444"),
    "H": (H, 1, "00", "00" * 8, "00", "00", "00" * 8, "00" * 8, "666"),
    "I": (L, 6, "7e", "2042 6476 a0ca ecfe", "78", "7c", "2042 6476 a0ca ecfe",
          "1022 4365 90aa cbed", "444"),
    "K": (K, 4, "7e", "bd40 bf15 3fad 627d", "78", "7c", "bd40 bf15 3fad 627d",
          "ac30 ae14 2e9c 516c", "666"),
}  # fmt: skip
