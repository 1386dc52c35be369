// Whole-network inference. Each map is written once, in pixels of whole panels of channels, and a
// block's depthwise output goes straight from a tile in the L2 cache into the pointwise product.
//
// The batch is cut into groups of images. With as many groups as workers each worker takes a group
// through the whole network by itself, in its own scratch, and nobody waits. Otherwise the workers
// share every phase of a group: the stem, each block, the head. Sums never depend on the division,
// so neither does any result.
#pragma once

#include "kernels/cpu/gemm.inl.h"
#include "kernels/cpu/memory.h"
#include "kernels/cpu/mobilenet_depthwise.inl.h"
#include "kernels/cpu/mobilenet_schedule.h"
#include "kernels/cpu/mobilenet_stem.inl.h"
#include "kernels/dispatch.h"

namespace mobilenet_ext::cpu {
namespace {

// The memory of one group: its maps alternate between two buffers.
struct GroupBuffers {
  float* maps[2];
  int64_t bytes;

  GroupBuffers(const MobileNetArgs& args, int64_t images, void* base) {
    Arena arena(base);
    for (float*& map : maps) map = arena.take<float>(images * largest_map_floats(args));
    bytes = arena.bytes();
  }
};

// A group on its way through the network.
struct Group {
  const MobileNetArgs& args;
  Range images;
  GroupBuffers buffers;
  int64_t workers;  // on this group

  const float* input_of(int64_t block) const { return buffers.maps[block % 2]; }
  float* output_of(int64_t block) const { return buffers.maps[(block + 1) % 2]; }
};

template <Activation kActivation>
void depthwise(const MobileNetLayer& block, const float* input, Range rows, float* output) {
  const int64_t pitch = row_pitch(block.conv.channels);
  if (block.conv.stride == 1) {
    depthwise_rows<1, kActivation>(block, input, pitch, rows, output);
  } else {
    depthwise_rows<2, kActivation>(block, input, pitch, rows, output);
  }
}

// Panels of the block's pointwise product over the rows whose depthwise output is `a`. The weights
// of the next layer lie behind this one's.
template <Activation kActivation>
void pointwise(const MobileNetLayer& block, const float* a, Range rows, Range panels, bool is_last,
               float* output) {
  const int64_t depth = block.conv.channels, pitch = row_pitch(block.out_channels);
  Product<float> p;
  p.a = a;
  p.a_stride = row_pitch(depth);
  p.rows = rows.size() * block.conv.out_width;
  p.depth = depth;
  p.b = block.point_weight + panels.begin * kPanel * depth;
  p.bias = block.point_weight + round_to_panels(block.out_channels) * depth + panels.begin * kPanel;
  p.panels = panels.size();
  p.c = output + rows.begin * block.conv.out_width * pitch + panels.begin * kPanel;
  p.c_stride = pitch;
  p.following = is_last ? block.point_weight + packed_matrix_size(block.out_channels, depth) : p.b;
  product<kActivation>(p);
}

template <Activation kActivation>
void run_block(const Group& group, int64_t index, int64_t item, float* tile) {
  const MobileNetLayer& block = group.args.blocks[index];
  const BlockSchedule schedule(block, group.images.size(), group.workers);
  const int64_t row_tile = divide(item, schedule.shares);
  const Range rows = share(row_tile, schedule.tiles, schedule.rows);
  const int64_t panels = round_to_panels(block.out_channels) / kPanel;
  depthwise<kActivation>(block, group.input_of(index), rows, tile);
  pointwise<kActivation>(block, tile, rows,
                         share(item - row_tile * schedule.shares, schedule.shares, panels),
                         row_tile == schedule.tiles - 1, group.output_of(index));
}

// Mean over the pixels of the last map, for panels of channels; `to` is [images, row_pitch].
inline void pool(const Group& group, Range panels, float* to) {
  const MobileNetLayer& last = last_layer(group.args);
  const int64_t pixels = last.conv.out_height * last.conv.out_width;
  const int64_t pitch = row_pitch(last.out_channels);
  const float share_of_one = 1.0f / static_cast<float>(pixels);
  for (int64_t n = 0; n < group.images.size(); ++n) {
    const float* map = group.input_of(group.args.block_count) + n * pixels * pitch;
    for (int64_t c = panels.begin * kPanel; c < panels.end * kPanel; c += kLanes<float>) {
      Vec<float> sum = {};
      for (int64_t p = 0; p < pixels; ++p) sum += load(map + p * pitch + c, AllLanes{});
      store(to + n * pitch + c, sum * share_of_one, AllLanes{});
    }
  }
}

inline int64_t output_panels(const MobileNetArgs& args) {
  return round_to_panels(args.outputs) / kPanel;
}

// A share of the outputs: pooled features, or logits of them, which each worker then pools for
// itself. The last panel may be cut, so outputs take the way through `tile`.
inline void run_head(const Group& group, Range panels, float* tile) {
  const MobileNetArgs& args = group.args;
  const int64_t depth = last_layer(args).out_channels, images = group.images.size();
  const int64_t first = panels.begin * kPanel;
  const float* from = tile + first;
  int64_t stride = row_pitch(depth);
  pool(group, args.classifier ? Range{0, round_to_panels(depth) / kPanel} : panels, tile);
  if (args.classifier) {
    float* logits = tile + images * stride;
    const float* bias = args.classifier + round_to_panels(args.outputs) * depth;
    const float* weight = args.classifier + first * depth;
    product<Activation::kNone>(Product<float>{tile, stride, images, depth, weight, bias + first,
                                              panels.size(), logits, panels.size() * kPanel,
                                              weight});
    from = logits;
    stride = panels.size() * kPanel;
  }
  const int64_t count = min_of(panels.end * kPanel, args.outputs) - first;
  for (int64_t n = 0; n < images; ++n) {
    float* to = args.output + (group.images.begin + n) * args.outputs + first;
    __builtin_memcpy(to, from + n * stride, sizeof(float) * count);
  }
}

// Phases of a group: the stem, the blocks, the head.
inline int64_t phase_count(const MobileNetArgs& args) { return args.block_count + 2; }

inline int64_t phase_items(const MobileNetArgs& args, int64_t images, int64_t workers,
                           int64_t phase) {
  if (phase == 0) return stem_items(args.stem, images, workers);
  if (phase > args.block_count) return min_of(workers, output_panels(args));
  return BlockSchedule(args.blocks[phase - 1], images, workers).items();
}

template <Activation kActivation>
void run_phase(const Group& group, int64_t phase, int64_t item, float* tile) {
  const MobileNetArgs& args = group.args;
  const int64_t items = phase_items(args, group.images.size(), group.workers, phase);
  if (phase == 0) {
    const int64_t rows = group.images.size() * args.stem.conv.out_height;
    stem_rows<kActivation>(args, group.images.begin, share(item, items, rows),
                           group.buffers.maps[0], tile);
  } else if (phase > args.block_count) {
    run_head(group, share(item, items, output_panels(args)), tile);
  } else {
    run_block<kActivation>(group, phase - 1, item, tile);
  }
}

template <Activation kActivation>
void run_group(const Group& group, float* tile) {
  for (int64_t phase = 0; phase < phase_count(group.args); ++phase) {
    const int64_t items = phase_items(group.args, group.images.size(), group.workers, phase);
    for (int64_t i = 0; i < items; ++i) run_phase<kActivation>(group, phase, i, tile);
  }
}

// What a worker needs beside the maps: the stem's rows, a depthwise tile, or the head's vectors.
inline int64_t tile_bytes(const MobileNetArgs& args, const Groups& groups) {
  const int64_t head =
      groups.images * (row_pitch(last_layer(args).out_channels) + round_to_panels(args.outputs));
  int64_t bytes = max_of(StemRing(args, nullptr).bytes, head * kFloatBytes);
  const int64_t workers = groups.shared ? args.workers : 1;
  for (int64_t i = 0; i < args.block_count; ++i) {
    const BlockSchedule schedule(args.blocks[i], groups.images, workers);
    bytes = max_of(bytes, schedule.tile_floats * kFloatBytes);
  }
  return round_up(bytes, kAlignment);
}

inline int64_t mobilenet_workspace_bytes(const MobileNetArgs& args) {
  const Groups groups(args);
  return groups.shared ? GroupBuffers(args, groups.images, nullptr).bytes : 0;
}

// A tile, and in front of it the group's buffers where the worker is alone with them.
inline int64_t mobilenet_scratch_bytes(const MobileNetArgs& args) {
  const Groups groups(args);
  const int64_t own = groups.shared ? 0 : GroupBuffers(args, groups.images, nullptr).bytes;
  return own + tile_bytes(args, groups);
}

inline int64_t mobilenet_phases(const MobileNetArgs& args) {
  const Groups groups(args);
  return groups.shared ? groups.count * phase_count(args) : 1;
}

inline int64_t mobilenet_items(const MobileNetArgs& args, int64_t phase) {
  const Groups groups(args);
  if (!groups.shared) return groups.count;
  const Range images = groups.at(phase / phase_count(args));
  return phase_items(args, images.size(), args.workers, phase % phase_count(args));
}

inline void mobilenet_run(const MobileNetArgs& args, int64_t phase, int64_t item, void* scratch) {
  const Groups groups(args);
  const Range images = groups.at(groups.shared ? phase / phase_count(args) : item);
  const int64_t workers = groups.shared ? args.workers : 1;
  void* base = groups.shared ? args.workspace : scratch;
  const Group group{args, images, GroupBuffers(args, groups.images, base), workers};
  float* tile = static_cast<float*>(scratch);
  if (!groups.shared) tile += group.buffers.bytes / static_cast<int64_t>(sizeof(float));
  dispatch_activation(args.activation, [&](auto activation) {
    constexpr Activation kActivation = decltype(activation)::value;
    if (groups.shared) {
      run_phase<kActivation>(group, phase % phase_count(args), item, tile);
    } else {
      run_group<kActivation>(group, tile);
    }
  });
}

constexpr Program<MobileNetArgs> kMobileNet = {mobilenet_workspace_bytes, mobilenet_scratch_bytes,
                                               mobilenet_phases, mobilenet_items, mobilenet_run};

}  // namespace
}  // namespace mobilenet_ext::cpu
