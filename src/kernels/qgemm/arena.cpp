#include "kernels/qgemm/arena.h"

#include <mutex>

#include "base/aligned_buffer.h"
#include "base/shape.h"

namespace longspur::kernels::qgemm {

namespace {

constexpr size_t kChunk = size_t(32) << 20;

struct Chunk {
  explicit Chunk(size_t bytes) : memory(bytes) {}
  AlignedBuffer memory;
  size_t used = 0;
};

}  // namespace

std::shared_ptr<std::byte> allocate_weights(size_t bytes) {
  // Shared ownership: the matrices of a chunk are freed in any order.
  static std::mutex mutex;
  static std::weak_ptr<Chunk> filling;
  const size_t rounded = size_t(round_up(int64_t(bytes), int64_t(AlignedBuffer::kAlignment)));
  const std::lock_guard<std::mutex> lock(mutex);
  std::shared_ptr<Chunk> chunk = filling.lock();
  if (rounded > kChunk / 4) {
    chunk = std::make_shared<Chunk>(rounded);
  } else if (chunk == nullptr || chunk->memory.size() - chunk->used < rounded) {
    chunk = std::make_shared<Chunk>(kChunk);
    filling = chunk;
  }
  std::byte* begin = chunk->memory.data() + chunk->used;
  chunk->used += rounded;
  return {std::move(chunk), begin};
}

}  // namespace longspur::kernels::qgemm
