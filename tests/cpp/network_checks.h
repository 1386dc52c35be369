// Runs a kernel table's whole-network inference against loops in double. Buffers have just the size
// that the kernels ask for, so that a sanitizer sees what lies outside.
#pragma once

#include <array>

#include "kernel_checks.h"

namespace mobilenet_ext::cpu {

// A dense map [H, W, C] in double.
struct Map {
  int64_t height, width, channels;
  std::vector<double> values;

  Map(int64_t h, int64_t w, int64_t c) : height(h), width(w), channels(c), values(h * w * c) {}
  double& at(int64_t y, int64_t x, int64_t c) { return values[(y * width + x) * channels + c]; }
};

// A network with random weights; each image of the batch goes through the loops by itself.
struct NetworkCheck {
  MobileNetArgs args = {};
  std::vector<Values> weights;
  Values image;

  // Layers: the stem, then blocks; {channels in, channels out, stride}. Padding is 0 and 1.
  NetworkCheck(int64_t batch, int64_t height, int64_t width,
               const std::vector<std::array<int64_t, 3>>& layers, int64_t outputs) {
    weights.reserve(2 * layers.size() + 1);
    args.batch = batch;
    args.activation = Activation::kRelu6;
    args.block_count = static_cast<int64_t>(layers.size()) - 1;
    args.outputs = outputs;
    const int64_t channels = layers[0][0];
    image = random_values(batch * channels * height * width);
    args.image = image.data();
    const int64_t strides[] = {channels * height * width, height * width, width, 1};
    for (int d = 0; d < 4; ++d) args.image_strides[d] = strides[d];
    for (size_t i = 0; i < layers.size(); ++i) {
      const auto [in, out, stride] = layers[i];
      MobileNetLayer& layer = i ? args.blocks[i - 1] : args.stem;
      layer.conv = {0, in, height, width, 0, 0, 3, stride, 1, stride == 1, 1, stride == 1, 1};
      height = layer.conv.out_height = conv_output_size(height + 1 + (stride == 1), 3, stride);
      width = layer.conv.out_width = conv_output_size(width + 1 + (stride == 1), 3, stride);
      layer.out_channels = out;
      layer.weight = add(i ? packed_depthwise_size(in) : packed_matrix_size(out, 9 * in));
      if (i) layer.point_weight = add(packed_matrix_size(out, in));
    }
    args.classifier = add(packed_matrix_size(outputs, layers.back()[1]));
  }

  const float* add(int64_t size) {
    weights.push_back(random_values(size));
    for (float& v : weights.back()) v *= 0.2f;
    return weights.back().data();
  }

  static double relu6(double x) { return std::fmin(6.0, std::fmax(0.0, x)); }

  // Element [row, k] of a packed matrix; k == depth is the bias.
  static double element(const float* packed, int64_t rows, int64_t depth, int64_t row, int64_t k) {
    if (k == depth) return packed[round_to_panels(rows) * depth + row];
    return packed[(row / kPanel * depth + k) * kPanel + row % kPanel];
  }

  // Calls f(tap, y, x) for the taps of output (oy, ox) that lie inside.
  template <typename F>
  static void for_each_tap(const ConvShape& s, int64_t oy, int64_t ox, F f) {
    for (int64_t t = 0; t < 9; ++t) {
      const int64_t y = oy * s.stride - s.pad_top + t / 3, x = ox * s.stride - s.pad_left + t % 3;
      if (y >= 0 && y < s.in_height && x >= 0 && x < s.in_width) f(t, y, x);
    }
  }

  Map run_stem(int64_t n) const {
    const ConvShape& s = args.stem.conv;
    Map to(s.out_height, s.out_width, args.stem.out_channels);
    for (int64_t y = 0; y < to.height; ++y)
      for (int64_t x = 0; x < to.width; ++x)
        for (int64_t o = 0; o < to.channels; ++o) {
          const auto weight = [&](int64_t k) {
            return element(args.stem.weight, to.channels, 9 * s.channels, o, k);
          };
          double sum = weight(9 * s.channels);
          for_each_tap(s, y, x, [&](int64_t t, int64_t iy, int64_t ix) {
            for (int64_t c = 0; c < s.channels; ++c) {
              const int64_t at = ((n * s.channels + c) * s.in_height + iy) * s.in_width + ix;
              sum += weight(t * s.channels + c) * image[at];
            }
          });
          to.at(y, x, o) = relu6(sum);
        }
    return to;
  }

  static Map run_block(const MobileNetLayer& block, Map from) {
    const ConvShape& s = block.conv;
    const int64_t pitch = round_to_panels(s.channels);
    Map to(s.out_height, s.out_width, block.out_channels);
    std::vector<double> pixel(s.channels);
    for (int64_t y = 0; y < to.height; ++y)
      for (int64_t x = 0; x < to.width; ++x) {
        for (int64_t c = 0; c < s.channels; ++c) {
          double sum = block.weight[9 * pitch + c];
          for_each_tap(s, y, x, [&](int64_t t, int64_t iy, int64_t ix) {
            sum += block.weight[t * pitch + c] * from.at(iy, ix, c);
          });
          pixel[c] = relu6(sum);
        }
        for (int64_t o = 0; o < to.channels; ++o) {
          to.at(y, x, o) = relu6(row_of(block.point_weight, to.channels, o, pixel));
        }
      }
    return to;
  }

  // Row `row` of a packed matrix times `vector`, with the bias.
  static double row_of(const float* packed, int64_t rows, int64_t row,
                       const std::vector<double>& vector) {
    const int64_t depth = static_cast<int64_t>(vector.size());
    double sum = element(packed, rows, depth, row, depth);
    for (int64_t k = 0; k < depth; ++k) sum += element(packed, rows, depth, row, k) * vector[k];
    return sum;
  }

  std::vector<double> expected() const {
    std::vector<double> logits;
    for (int64_t n = 0; n < args.batch; ++n) {
      Map map = run_stem(n);
      for (int64_t i = 0; i < args.block_count; ++i) map = run_block(args.blocks[i], map);
      std::vector<double> pooled(map.channels);
      const double pixels = double(map.height * map.width);
      for (size_t i = 0; i < map.values.size(); ++i) {
        pooled[i % map.channels] += map.values[i] / pixels;
      }
      for (int64_t o = 0; o < args.outputs; ++o) {
        logits.push_back(row_of(args.classifier, args.outputs, o, pooled));
      }
    }
    return logits;
  }

  int check(const KernelTable& table, int64_t workers) const {
    const auto sized = [](int64_t bytes) {
      const auto size = static_cast<size_t>((bytes + kAlignment - 1) / kAlignment * kAlignment);
      return std::unique_ptr<void, void (*)(void*)>(std::aligned_alloc(kAlignment, size),
                                                    std::free);
    };
    Values got(args.batch * args.outputs, -77);
    MobileNetArgs run = args;
    run.workers = workers;
    run.output = got.data();
    table.mobilenet.plan(run);
    const auto workspace = sized(table.mobilenet.workspace_bytes(run));
    run.workspace = workspace.get();
    for (int64_t phase = 0; phase < table.mobilenet.phases(run); ++phase) {
      for (int64_t item = table.mobilenet.items(run, phase); item-- > 0;) {
        const auto scratch = sized(table.mobilenet.scratch_bytes(run));
        table.mobilenet.run(run, phase, item, scratch.get());
      }
    }
    return ConvCheck::compare("logits", expected(), got);
  }
};

inline int check_network(const KernelTable& table) {
  const NetworkCheck checks[] = {
      {1, 13, 9, {{3, 5, 2}, {5, 17, 1}, {17, 33, 2}, {33, 20, 1}}, 7},
      {3, 6, 7, {{1, 16, 2}, {16, 24, 2}, {24, 24, 1}, {24, 300, 1}}, 19},
      {5, 4, 4, {{4, 9, 2}, {9, 16, 1}, {16, 8, 2}, {8, 40, 1}}, 33},
      {1, 40, 50, {{3, 32, 2}, {32, 64, 1}, {64, 70, 2}}, 3},
      // With the L2 cache of 128 KB that CMakeLists.txt sets, two of three blocks go in bands of
      // rows. In the second network all do, in parts that two workers have.
      {2, 61, 75, {{3, 24, 2}, {24, 40, 1}, {40, 40, 2}, {40, 24, 1}}, 5},
      {1, 133, 75, {{3, 24, 2}, {24, 40, 1}, {40, 40, 2}, {40, 24, 1}}, 5},
  };
  int failures = 0;
  for (const NetworkCheck& check : checks) {
    for (const int64_t workers : {1, 2, 7}) failures += check.check(table, workers);
  }
  std::printf("%s: networks, %d failures\n", table.name, failures);
  return failures;
}

}  // namespace mobilenet_ext::cpu
