// Counter-based random numbers: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as
// 1, 2, 3", SC 2011). A draw is a pure function of (seed, stream, counter), so results do not
// depend on batch composition, thread count or order.
#pragma once

#include <array>
#include <cstdint>

namespace longspur {

inline std::array<uint32_t, 4> philox4x32(uint64_t seed, uint64_t stream, uint64_t counter) {
  std::array<uint32_t, 4> c = {uint32_t(counter), uint32_t(counter >> 32), uint32_t(stream),
                               uint32_t(stream >> 32)};
  uint32_t k0 = uint32_t(seed), k1 = uint32_t(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t(0xD2511F53u) * c[0];
    const uint64_t p1 = uint64_t(0xCD9E8D57u) * c[2];
    c = {uint32_t(p1 >> 32) ^ c[1] ^ k0, uint32_t(p1), uint32_t(p0 >> 32) ^ c[3] ^ k1,
         uint32_t(p0)};
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return c;
}

// Uniform in [0, 1) with 24 bits.
inline float uniform01(uint32_t bits) { return float(bits >> 8) * 0x1p-24f; }

// Numbers for tests, uniform in [-1, 1), from a counter.
class Noise {
 public:
  explicit Noise(uint64_t seed) : seed_(seed) {}
  uint32_t bits() { return philox4x32(seed_, 0, count_++)[0]; }
  float next() { return 2 * uniform01(bits()) - 1; }

 private:
  uint64_t seed_, count_ = 0;
};

}  // namespace longspur
