// Arguments of whole-network inference: MobileNet with BatchNorm folded, float32. The weights lie
// in one array:
//   matrix [C', K]: packed in panels (panels.h)
//   depthwise [C, 3, 3]: taps of all channels, [9, C], zeros up to a multiple of kPanel
// each followed by its bias, [C'] with zeros up to a multiple of kPanel.
#pragma once

#include "kernels/activation.h"
#include "kernels/conv_shape.h"
#include "kernels/panels.h"

namespace mobilenet_ext {

constexpr int64_t kMaxMobileNetBlocks = 32;

// Depth of the stem's product: its patch, in the order ky, kx, channel.
static inline int64_t stem_depth(int64_t channels) { return 9 * channels; }

static inline int64_t packed_matrix_size(int64_t rows, int64_t depth) {
  return round_to_panels(rows) * (depth + 1);
}

static inline int64_t packed_depthwise_size(int64_t channels) {
  return round_to_panels(channels) * 10;
}

// A 3 x 3 convolution. In a block it is depthwise, and a pointwise one follows.
struct MobileNetLayer {
  ConvShape conv;             // batch is not used: see MobileNetArgs
  int64_t out_channels;       // of the stem or of the pointwise convolution
  const float* weight;        // stem: matrix [C', 9 C]; block: depthwise [C, 3, 3]
  const float* point_weight;  // block: matrix [C', C]
};

// How the work is divided, as the kernels have planned it.
struct MobileNetPlan {
  int64_t groups, group_images;  // of the batch
  bool shared;                   // all workers share each group; otherwise each takes whole ones
  int64_t front;                 // blocks that go with the stem, in bands of rows
};

struct MobileNetArgs {
  const float* image;  // [N, C, H, W] by the strides below, in elements
  int64_t image_strides[4];
  int64_t batch;
  MobileNetLayer stem;
  MobileNetLayer blocks[kMaxMobileNetBlocks];
  int64_t block_count;
  Activation activation;
  const float* classifier;  // matrix [outputs, C]; null: the pooled features are the output
  int64_t outputs;
  float* output;    // [N, outputs]
  int64_t workers;  // threads that will share the work; changes no result
  MobileNetPlan plan;
  void* workspace;
};

// Multiply-adds of an image's pointwise convolutions.
static inline int64_t pointwise_products(const MobileNetArgs& args) {
  int64_t products = 0;
  for (int64_t i = 0; i < args.block_count; ++i) {
    const MobileNetLayer& block = args.blocks[i];
    const int64_t pixels = block.conv.out_height * block.conv.out_width;
    products += pixels * block.conv.channels * block.out_channels;
  }
  return products;
}

}  // namespace mobilenet_ext
