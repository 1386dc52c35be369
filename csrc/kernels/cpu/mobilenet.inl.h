// Whole-network inference. Each map is written once, in pixels of whole panels of channels, large
// ones only in part (mobilenet_front.inl.h), and a block's depthwise output goes straight from a
// tile in the L2 cache into the pointwise product.
//
// The batch is cut into groups of images. Each worker takes groups through the whole network by
// itself, in its own scratch, and nobody waits. Where there are fewer images than workers, they
// share every phase of a group: the front, each block after it, the head. Sums never depend on the
// division, so neither does any result.
#pragma once

#include "kernels/cpu/memory.h"
#include "kernels/cpu/mobilenet_front.inl.h"
#include "kernels/dispatch.h"

namespace mobilenet_ext::cpu {
namespace {

// The memory of one group: its maps alternate between two buffers.
struct GroupBuffers {
  float* maps[2];
  int64_t bytes;

  GroupBuffers(const MobileNetArgs& args, int64_t images, void* base) {
    Arena arena(base);
    const int64_t floats = images * largest_map_floats(args, args.plan.front);
    for (float*& map : maps) map = arena.take<float>(floats);
    bytes = arena.bytes();
  }
};

// A group on its way through the network.
struct Group {
  const MobileNetArgs& args;
  Range images;
  GroupBuffers buffers;
  int64_t workers;  // on this group

  // Of a layer's output.
  float* map_of(int64_t layer) const { return buffers.maps[layer % 2]; }
};

template <Activation kActivation>
void run_block(const Group& group, int64_t layer, int64_t item, float* tile) {
  const MobileNetLayer& block = layer_at(group.args, layer);
  const BlockSchedule schedule(block, group.images.size(), group.workers);
  const int64_t row_tile = divide(item, schedule.shares);
  const Range rows = share(row_tile, schedule.tiles, schedule.rows);
  const Range panels =
      share(item - row_tile * schedule.shares, schedule.shares, all_panels(block).end);
  const bool is_last = row_tile == schedule.tiles - 1 || schedule.items() <= group.workers;
  const float* following = is_last
                               ? weight_after(block)
                               : block.point_weight + panels.begin * kPanel * block.conv.channels;
  const MapRows input{group.map_of(layer - 1), block.conv.in_width * row_pitch(block.conv.channels),
                      0, group.images.size() * block.conv.in_height};
  block_rows<kActivation>(block, input, rows, panels, following, tile,
                          group.map_of(layer) + rows.begin * row_floats(block));
}

// Mean over the pixels of the last map, for panels of channels; `to` is [images, row_pitch].
inline void pool(const Group& group, Range panels, float* to) {
  const MobileNetLayer& last = last_layer(group.args);
  const int64_t pixels = last.conv.out_height * last.conv.out_width;
  const int64_t pitch = row_pitch(last.out_channels);
  const float share_of_one = 1.0f / static_cast<float>(pixels);
  for (int64_t n = 0; n < group.images.size(); ++n) {
    const float* map = group.map_of(group.args.block_count) + n * pixels * pitch;
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
  pool(group, args.classifier ? all_panels(last_layer(args)) : panels, tile);
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

// Phases of a group: the front, the other blocks, the head.
inline int64_t phase_count(const MobileNetArgs& args) {
  return args.block_count - args.plan.front + 2;
}

inline int64_t phase_items(const MobileNetArgs& args, int64_t images, int64_t workers,
                           int64_t phase) {
  if (phase == 0) return front_items(args, images, workers);
  if (phase == phase_count(args) - 1) return min_of(workers, output_panels(args));
  return BlockSchedule(layer_at(args, args.plan.front + phase), images, workers).items();
}

template <Activation kActivation>
void run_phase(const Group& group, int64_t phase, int64_t item, float* scratch) {
  const MobileNetArgs& args = group.args;
  const int64_t front = args.plan.front, layer = front + phase;
  if (phase > 0 && layer <= args.block_count) {
    return run_block<kActivation>(group, layer, item, scratch);
  }
  const int64_t items = phase_items(args, group.images.size(), group.workers, phase);
  if (phase == 0) {
    const int64_t rows = group.images.size() * layer_at(args, front).conv.out_height;
    run_front<kActivation>(args, group.images.begin, share(item, items, rows), group.map_of(front),
                           scratch);
  } else {
    run_head(group, share(item, items, output_panels(args)), scratch);
  }
}

template <Activation kActivation>
void run_group(const Group& group, float* scratch) {
  for (int64_t phase = 0; phase < phase_count(group.args); ++phase) {
    const int64_t items = phase_items(group.args, group.images.size(), group.workers, phase);
    for (int64_t i = 0; i < items; ++i) run_phase<kActivation>(group, phase, i, scratch);
  }
}

// What a worker needs beside the maps: the front's rings, a depthwise tile, or the head's vectors.
inline int64_t phase_scratch_bytes(const MobileNetArgs& args) {
  const int64_t images = args.plan.group_images;
  const int64_t head =
      images * (row_pitch(last_layer(args).out_channels) + round_to_panels(args.outputs));
  int64_t bytes = max_of(Front(args, nullptr).bytes, head * kFloatBytes);
  const int64_t workers = args.plan.shared ? args.workers : 1;
  for (int64_t i = args.plan.front + 1; i <= args.block_count; ++i) {
    const BlockSchedule schedule(layer_at(args, i), images, workers);
    bytes = max_of(bytes, schedule.tile_floats * kFloatBytes);
  }
  return round_up(bytes, kAlignment);
}

inline int64_t mobilenet_workspace_bytes(const MobileNetArgs& args) {
  return args.plan.shared ? GroupBuffers(args, args.plan.group_images, nullptr).bytes : 0;
}

// A phase's scratch, and in front of it the group's buffers where the worker is alone with them.
inline int64_t mobilenet_scratch_bytes(const MobileNetArgs& args) {
  const MobileNetPlan& plan = args.plan;
  const int64_t own = plan.shared ? 0 : GroupBuffers(args, plan.group_images, nullptr).bytes;
  return own + phase_scratch_bytes(args);
}

inline int64_t mobilenet_phases(const MobileNetArgs& args) {
  return args.plan.shared ? args.plan.groups * phase_count(args) : 1;
}

inline int64_t mobilenet_items(const MobileNetArgs& args, int64_t phase) {
  if (!args.plan.shared) return args.plan.groups;
  const Range images = group_at(args, phase / phase_count(args));
  return phase_items(args, images.size(), args.workers, phase % phase_count(args));
}

inline void mobilenet_run(const MobileNetArgs& args, int64_t phase, int64_t item, void* scratch) {
  const MobileNetPlan& plan = args.plan;
  const Range images = group_at(args, plan.shared ? phase / phase_count(args) : item);
  const int64_t workers = plan.shared ? args.workers : 1;
  void* base = plan.shared ? args.workspace : scratch;
  const Group group{args, images, GroupBuffers(args, plan.group_images, base), workers};
  float* rest = static_cast<float*>(scratch);
  if (!plan.shared) rest += group.buffers.bytes / kFloatBytes;
  dispatch_activation(args.activation, [&](auto activation) {
    constexpr Activation kActivation = decltype(activation)::value;
    if (plan.shared) {
      run_phase<kActivation>(group, phase % phase_count(args), item, rest);
    } else {
      run_group<kActivation>(group, rest);
    }
  });
}

constexpr Program<MobileNetArgs> kMobileNet = {plan_mobilenet,          mobilenet_workspace_bytes,
                                               mobilenet_scratch_bytes, mobilenet_phases,
                                               mobilenet_items,         mobilenet_run};

}  // namespace
}  // namespace mobilenet_ext::cpu
