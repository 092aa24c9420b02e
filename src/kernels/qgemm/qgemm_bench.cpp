// Times of the products of SmolLM2-135M: each shape over the weights of all its layers in turn (so
// that they come from memory as in a real step), and the whole sequence of a forward step. Beside
// each time stands its share of a plain read of as many bytes, measured in the same round.
//
//   qgemm_bench [--threads 2] [--isa avx2] [--precision peak|int15|nvfp4] [--seconds 0.3] [--json
//   FILE]
//               [--tokens 1,4,16,64,512] [--type Q4_1]
#include <algorithm>
#include <chrono>
#include <cstring>
#include <fstream>
#include <iomanip>
#include <iostream>
#include <sstream>

#include "base/error.h"
#include "kernels/qgemm/api.h"
#include "kernels/qgemm/qgemm_cases.h"

namespace longspur::kernels::qgemm {
namespace {

constexpr std::string_view kPrecisionNames[] = {"peak", "int15", "nvfp4"};

ActPrecision precision_named(const std::string& name) {
  for (size_t i = 0; i < std::size(kPrecisionNames); ++i)
    if (name == kPrecisionNames[i]) return ActPrecision(i);
  throw Error(concat("--precision: found '", name, "', expected peak, int15 or nvfp4"));
}

struct Options {
  std::vector<int> threads = {1, 2};
  std::vector<int64_t> tokens = {1, 4, 16, 64, 512};
  std::string isa, json;
  ActPrecision precision = ActPrecision::kInt8Peak;
  DType type = DType::kQ4_1;
  double seconds = 0.3;
};

struct Layer {
  std::unique_ptr<PackedWeight> weight;
  Input input;
};

struct Product {
  std::string name;
  std::vector<Layer> layers;
};

constexpr int kLayers = 30;

Product make_product(std::string name,
                     DType dtype,
                     int64_t n,
                     int64_t k,
                     Input input,
                     int layers,
                     ThreadPool& pool,
                     double& seconds,
                     int64_t& bytes) {
  Product product{std::move(name), {}};
  std::vector<std::byte> stored = make_weights(dtype, n, k, 1);
  for (int i = 0; i < layers; ++i) {
    const WeightRows rows{dtype, stored.data(), n, k};
    const auto begin = std::chrono::steady_clock::now();
    product.layers.push_back({pack(std::span(&rows, 1), pool), input});
    seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    bytes += int64_t(stored.size());
  }
  return product;
}

int64_t bytes_of(const Product& product) {
  int64_t bytes = 0;
  for (const Layer& layer : product.layers) bytes += layer.weight->bytes();
  return bytes;
}

double operations(const Product& product, int64_t t) {
  double sum = 0;
  for (const Layer& layer : product.layers)
    sum += 2.0 * double(layer.weight->n() * layer.weight->k() * t);
  return sum;
}

// Sums of a buffer read by the team, 16 bytes a load.
void read_all(Team& team, const std::byte* data, int64_t bytes) {
  typedef uint64_t Vec __attribute__((vector_size(16)));
  const Team::Range range = team.static_range(bytes, 4096);
  Vec sum[8] = {};
  for (int64_t i = range.begin; i + 128 <= range.end; i += 128) {
    for (int j = 0; j < 8; ++j) {
      Vec v;
      std::memcpy(&v, data + i + 16 * j, sizeof v);
      sum[j] += v;
    }
  }
  Vec total{};
  for (const Vec& v : sum) total += v;
  volatile uint64_t sink = total[0] + total[1];
  static_cast<void>(sink);
}

template <class F>
double time_once(const F& f) {
  const auto begin = std::chrono::steady_clock::now();
  f();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

struct Timing {
  double best, median, read_best;
};

// Alternates the product with the read, so that both meet the same disturbances.
template <class F, class G>
Timing measure(double seconds, const F& product, const G& read) {
  std::vector<double> times;
  double read_best = 1e9, spent = 0;
  while (spent < seconds || times.size() < 5) {
    times.push_back(time_once(product));
    const double r = times.size() % 8 == 1 ? time_once(read) : 0;
    if (r > 0) read_best = std::min(read_best, r);
    spent += times.back() + r;
  }
  std::sort(times.begin(), times.end());
  return {times.front(), times[times.size() / 2], read_best};
}

class Bench {
 public:
  explicit Bench(const Options& options) : options_(options), buffer_(size_t(256) << 20) {
    std::memset(buffer_.data(), 1, buffer_.size());
    ThreadPool pool(options.threads.back());
    const DType type = options.type;
    // As in the models that are 4 bit: their head keeps 8.
    const bool four_bit = dtype_bytes(type, 64) <= 40;
    double seconds = 0;
    int64_t bytes = 0;
    const auto add = [&](const char* name, DType dtype, int64_t n, int64_t k, Input input,
                         int layers) {
      products_.push_back(make_product(name, dtype, n, k, input, layers, pool, seconds, bytes));
    };
    add("qkv", type, 960, 576, Input::kRmsNorm, kLayers);
    add("o", type, 576, 576, Input::kPlain, kLayers);
    add("gate_up", type, 3072, 576, Input::kRmsNorm, kLayers);
    add("down", type, 576, 1536, Input::kSwiGlu, kLayers);
    add("head", four_bit ? DType::kQ8_0 : type, 49152, 576, Input::kRmsNorm, 1);
    std::cout << "pack: " << double(bytes) * 1e-6 << " MB in " << seconds * 1e3 << " ms\n";
  }

  void run() {
    std::cout
        << "isa " << active_isa() << "\n"
        << "threads    T  product      best ms  median ms    GB/s   read GB/s  share   GOP/s\n";
    for (const int threads : options_.threads) {
      ThreadPool pool(threads);
      for (const int64_t t : options_.tokens) {
        for (const Product& product : products_)
          if (product.name != "head" || t <= 64) report(pool, t, product.name, {&product});
        std::vector<const Product*> all;
        for (const Product& product : products_)
          if (product.name != "head" || t <= 64) all.push_back(&product);
        report(pool, t, "step", all);
      }
    }
    if (!options_.json.empty()) std::ofstream(options_.json) << "[\n" << json_.str() << "\n]\n";
  }

 private:
  void report(ThreadPool& pool,
              int64_t t,
              const std::string& name,
              const std::vector<const Product*>& products) {
    int64_t bytes = 0, workspace_size = 0, widest = 0;
    double ops = 0;
    for (const Product* product : products) {
      bytes += bytes_of(*product);
      ops += operations(*product, t);
      for (const Layer& layer : product->layers) {
        const PackedWeight& w = *layer.weight;
        workspace_size = std::max(workspace_size, workspace_bytes(w.dtype(), t, w.k(), true));
        widest = std::max(widest, w.n());
      }
    }
    AlignedBuffer workspace{size_t(workspace_size)};
    const std::vector<float> x = make_input(t, 3072, 0, 5), norm(3072, 1.0f);
    std::vector<float> y(size_t(t * widest));
    const auto step = [&](Team& team) {
      const size_t layers = products.front()->layers.size();
      for (size_t i = 0; i < layers; ++i) {
        for (const Product* product : products) {
          if (i >= product->layers.size() || (product->layers.size() == 1 && i + 1 < layers))
            continue;
          one(team, product->layers[i], t, x, norm, y, workspace.data());
        }
      }
      if (products.size() > 1 && products.back()->layers.size() == 1)
        one(team, products.back()->layers[0], t, x, norm, y, workspace.data());
    };
    const Timing timing = measure(
        options_.seconds, [&] { pool.run(step); },
        [&] {
          pool.run([&](Team& team) { read_all(team, buffer_.data(), int64_t(buffer_.size())); });
        });
    print(pool.size(), t, name, timing, double(bytes), ops);
  }

  void one(Team& team,
           const Layer& layer,
           int64_t t,
           const std::vector<float>& x,
           const std::vector<float>& norm,
           std::vector<float>& y,
           std::byte* workspace) {
    MatmulArgs args;
    args.x = x.data();
    args.t = t;
    args.ldx = 3072;
    args.input = layer.input;
    args.norm_weight = norm.data();
    args.eps = 1e-5f;
    args.y = y.data();
    args.ldy = layer.weight->n();
    args.precision = options_.precision;
    matmul(team, *layer.weight, args, workspace);
  }

  void print(int threads,
             int64_t t,
             const std::string& name,
             const Timing& timing,
             double bytes,
             double ops) {
    const double rate = bytes / timing.best * 1e-9;
    const double read = double(buffer_.size()) / timing.read_best * 1e-9;
    std::cout << std::fixed << std::setw(7) << threads << std::setw(5) << t << "  " << std::left
              << std::setw(8) << name << std::right << std::setprecision(3) << std::setw(12)
              << timing.best * 1e3 << std::setw(11) << timing.median * 1e3 << std::setprecision(2)
              << std::setw(8) << rate << std::setw(12) << read << std::setw(7) << rate / read
              << std::setprecision(0) << std::setw(8) << ops / timing.best * 1e-9 << "\n"
              << std::flush;
    json_ << (json_.tellp() > 0 ? ",\n" : "") << R"(  {"isa": ")" << active_isa()
          << R"(", "type": ")" << dtype_info(options_.type).name << R"(", "precision": ")"
          << kPrecisionNames[size_t(options_.precision)] << R"(", "threads": )" << threads
          << R"(, "tokens": )" << t << R"(, "product": ")" << name << R"(", "best_ms": )"
          << timing.best * 1e3 << R"(, "median_ms": )" << timing.median * 1e3 << R"(, "gb_per_s": )"
          << rate << R"(, "read_gb_per_s": )" << read << R"(, "gop_per_s": )"
          << ops / timing.best * 1e-9 << "}";
  }

  Options options_;
  AlignedBuffer buffer_;
  std::vector<Product> products_;
  std::ostringstream json_;
};

template <class T>
std::vector<T> numbers(const std::string& text) {
  std::vector<T> out;
  std::istringstream in(text);
  for (std::string part; std::getline(in, part, ',');) out.push_back(T(std::stoll(part)));
  require(!out.empty(), "list: found nothing, expected numbers");
  return out;
}

DType type_named(const std::string& name) {
  for (const DType dtype : kTypes)
    if (name == dtype_info(dtype).name) return dtype;
  throw Error(concat("--type: found '", name, "', expected a packed type"));
}

Options parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string flag = argv[i], value = argv[i + 1];
    if (flag == "--threads")
      options.threads = numbers<int>(value);
    else if (flag == "--tokens")
      options.tokens = numbers<int64_t>(value);
    else if (flag == "--isa")
      options.isa = value;
    else if (flag == "--json")
      options.json = value;
    else if (flag == "--type")
      options.type = type_named(value);
    else if (flag == "--precision")
      options.precision = precision_named(value);
    else if (flag == "--seconds")
      options.seconds = std::stod(value);
    else
      throw Error(concat("flag: found '", flag, "', expected one of the file's header"));
  }
  return options;
}

}  // namespace
}  // namespace longspur::kernels::qgemm

int main(int argc, char** argv) {
  using namespace longspur::kernels::qgemm;
  try {
    const Options options = parse(argc, argv);
    if (!options.isa.empty()) limit_isa(options.isa);
    Bench(options).run();
    return 0;
  } catch (const std::exception& error) {
    std::cerr << "qgemm_bench: " << error.what() << "\n";
    return 1;
  }
}
