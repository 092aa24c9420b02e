"""Writes a GGUF model again with its linear layers in NVFP4, rounded to the nearest.

    nvfp4_gguf.py SOURCE.gguf OUTPUT.gguf [--rule sweep]

The embedding, the head and vectors stay as they are stored. Block scales by the rule (static_6,
four_over_six or sweep), one multiplier a tensor in the F32 tensor NAME.scale. Independent of the
C++ quantiser on purpose: numpy and the gguf package only.
"""

import argparse

import gguf
import numpy as np
from gguf.quants import dequantize

GRID = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], dtype=np.float32)
MIDDLES = (GRID[1:] + GRID[:-1]) / 2
E4M3 = np.array(
    [c * 2.0**-9 if c < 8 else (8 + c % 8) * 2.0 ** (c // 8 - 10) for c in range(127)],
    dtype=np.float32,
)
OFFSETS = {"static_6": [0], "sweep": [0, -1, 1, 4, 5]}
LARGEST = {"static_6": 448, "four_over_six": 256, "sweep": 256}


def nearest_scale(x: np.ndarray) -> np.ndarray:
    """Codes of the nearest E4M3 values; ties go to the even code."""
    high = np.clip(np.searchsorted(E4M3, x), 1, 126)
    low = high - 1
    below, above = x - E4M3[low], E4M3[high] - x
    return np.where((below < above) | ((below == above) & (low % 2 == 0)), low, high)


def nearest_magnitude(x: np.ndarray) -> np.ndarray:
    """Codes 0 to 7 of the nearest E2M1 magnitudes; ties go to the even code."""
    code = np.searchsorted(MIDDLES, x)  # a tie counts as below the middle
    tie = np.isin(x, MIDDLES) & (code % 2 == 1)
    return np.minimum(code + tie, 7)


def candidates(rule: str, scale: np.ndarray) -> list[np.ndarray]:
    plain = nearest_scale(scale)
    if rule == "four_over_six":
        return [plain, nearest_scale(scale * np.float32(1.5))]
    return [np.clip(plain + offset, 0, 126) for offset in OFFSETS[rule]]


def quantize(w: np.ndarray, rule: str) -> tuple[np.ndarray, np.ndarray, np.float32]:
    """Codes [rows, K], scales [rows, K / 16] and the multiplier of w [rows, K]."""
    top = np.float32(6 * LARGEST[rule])
    multiplier = np.float32(np.abs(w).max()) / top
    x = w.reshape(len(w), -1, 16) / multiplier
    best = None
    for scale in candidates(rule, np.abs(x).max(axis=2) / np.float32(6)):
        step = E4M3[scale][..., None]
        scaled = np.divide(x, step, out=np.zeros_like(x), where=step > 0)
        magnitude = nearest_magnitude(np.abs(scaled))
        error = ((GRID[magnitude] * step - np.abs(x)) ** 2).sum(axis=2)
        codes = magnitude | np.where((x < 0) & (magnitude > 0), 8, 0)
        if best is None:
            best = [codes, scale, error]
            continue
        better = error < best[2]
        best = [
            np.where(better[..., None], codes, best[0]),
            np.where(better, scale, best[1]),
            np.minimum(error, best[2]),
        ]
    return best[0].astype(np.uint8), best[1].astype(np.uint8), multiplier


def blocks(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """GGUF's blocks of 64: four scales, then byte j of a sixteen has elements j and j + 8."""
    rows = len(codes)
    nibbles = codes.reshape(rows, -1, 4, 2, 8)
    packed = nibbles[:, :, :, 0] | nibbles[:, :, :, 1] << 4
    parts = [scales.reshape(rows, -1, 4), packed.reshape(rows, -1, 32)]
    return np.concatenate(parts, axis=2).reshape(rows, -1)


def copy_keys(reader: gguf.GGUFReader, writer: gguf.GGUFWriter) -> None:
    own = {"general.architecture", "general.file_type"}
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name in own:
            continue
        kind = field.types[0]
        sub = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), kind, sub_type=sub)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_NVFP4)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source")
    parser.add_argument("output")
    parser.add_argument("--rule", choices=sorted(LARGEST), default="sweep")
    args = parser.parse_args()
    reader = gguf.GGUFReader(args.source)
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(args.output, architecture)
    copy_keys(reader, writer)
    for tensor in reader.tensors:
        if not tensor.name.startswith("blk.") or len(tensor.shape) < 2 or tensor.shape[0] % 64:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
            continue
        w = dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        codes, scales, multiplier = quantize(w, args.rule)
        writer.add_tensor(
            tensor.name, blocks(codes, scales), raw_dtype=gguf.GGMLQuantizationType.NVFP4
        )
        name = tensor.name.removesuffix(".weight") + ".scale"
        writer.add_tensor(name, np.array([multiplier], dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
