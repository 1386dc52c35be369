// Whole-network inference. Each map is written once, in pixels of whole panels of channels, and a
// block's depthwise output goes straight from a tile in the L2 cache into the pointwise product.
//
// The batch is cut into groups of images. With as many groups as workers each worker takes a group
// through the whole network by itself, in its own scratch, and nobody waits. Otherwise the workers
// share every phase of a group: tiles of rows where there are enough, else channels. Sums never
// depend on the division, so neither does any result.
#pragma once

#include "kernels/cpu/gemm.inl.h"
#include "kernels/cpu/memory.h"
#include "kernels/cpu/mobilenet_depthwise.inl.h"
#include "kernels/cpu/mobilenet_schedule.h"
#include "kernels/cpu/mobilenet_stem.inl.h"
#include "kernels/dispatch.h"

namespace mobilenet_ext::cpu {
namespace {

// The memory of one group. Maps alternate between two buffers; a shared depthwise output has a
// third.
struct GroupBuffers {
  float *maps[2], *depthwise, *pooled;
  int64_t bytes;

  GroupBuffers(const MobileNetArgs& args, int64_t images, void* base) {
    Arena arena(base);
    int64_t map = images * map_floats(args.stem.conv, args.stem.out_channels), tile = 0;
    for (int64_t i = 0; i < args.block_count; ++i) {
      const MobileNetLayer& block = args.blocks[i];
      map = max_of(map, images * map_floats(block.conv, block.out_channels));
      tile = max_of(tile, images * map_floats(block.conv, block.conv.channels));
    }
    maps[0] = arena.take<float>(map);
    maps[1] = arena.take<float>(map);
    depthwise = arena.take<float>(tile);
    pooled = arena.take<float>(images * map_pitch(last_layer(args).out_channels));
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
void depthwise(const MobileNetLayer& block, const float* input, Range rows, Range channels,
               float* output) {
  const int64_t pitch = map_pitch(block.conv.channels);
  if (block.conv.stride == 1) {
    depthwise_rows<1, kActivation>(block, input, pitch, rows, channels, output);
  } else {
    depthwise_rows<2, kActivation>(block, input, pitch, rows, channels, output);
  }
}

// Panels of the block's pointwise product over the rows whose depthwise output is `a`.
template <Activation kActivation>
void pointwise(const MobileNetLayer& block, const float* a, Range rows, Range panels,
               float* output) {
  const int64_t depth = block.conv.channels, pitch = map_pitch(block.out_channels);
  Product p;
  p.a = a;
  p.a_stride = map_pitch(depth);
  p.rows = rows.size() * block.conv.out_width;
  p.depth = depth;
  p.b = block.point_weight + panels.begin * kPanel * depth;
  p.bias = block.point_weight + round_to_panels(block.out_channels) * depth + panels.begin * kPanel;
  p.panels = panels.size();
  p.c = output + rows.begin * block.conv.out_width * pitch + panels.begin * kPanel;
  p.c_stride = pitch;
  product<kActivation>(p);
}

// An item of a block: a tile of rows through both convolutions, or a share of one of them.
template <Activation kActivation>
void run_block(const Group& group, int64_t index, int64_t part, int64_t item, float* tile) {
  const MobileNetLayer& block = group.args.blocks[index];
  const BlockSchedule schedule(block, group.images.size(), group.workers);
  const float* input = group.input_of(index);
  const Range all_rows{0, schedule.rows};
  const Range all_channels{0, round_to_panels(block.conv.channels)};
  const int64_t panels = round_to_panels(block.out_channels) / kPanel;
  if (schedule.fused) {
    const Range rows = share(item, schedule.tiles, schedule.rows);
    depthwise<kActivation>(block, input, rows, all_channels, tile);
    pointwise<kActivation>(block, tile, rows, {0, panels}, group.output_of(index));
  } else if (part == 0) {
    const Range share_of = share(item, schedule.items(0), all_channels.end / kPanel);
    const Range channels{share_of.begin * kPanel, share_of.end * kPanel};
    depthwise<kActivation>(block, input, all_rows, channels, group.buffers.depthwise);
  } else {
    pointwise<kActivation>(block, group.buffers.depthwise, all_rows,
                           share(item, schedule.items(1), panels), group.output_of(index));
  }
}

// Mean over the pixels of the last map, for a share of the panels of channels.
inline void pool(const Group& group, Range panels) {
  const ConvShape& s = last_layer(group.args).conv;
  const int64_t pixels = s.out_height * s.out_width,
                pitch = map_pitch(last_layer(group.args).out_channels);
  const float share_of_one = 1.0f / static_cast<float>(pixels);
  for (int64_t n = 0; n < group.images.size(); ++n) {
    const float* map = group.input_of(group.args.block_count) + n * pixels * pitch;
    for (int64_t c = panels.begin * kPanel; c < panels.end * kPanel; c += kLanes<float>) {
      Vec<float> sum = {};
      for (int64_t p = 0; p < pixels; ++p) sum += load(map + p * pitch + c, AllLanes{});
      store(group.buffers.pooled + n * pitch + c, sum * share_of_one, AllLanes{});
    }
  }
}

// Some panels of the logits. The last one may be cut, so they take the way through `tile`.
inline void classify(const Group& group, Range panels, float* tile) {
  const MobileNetArgs& args = group.args;
  const int64_t depth = last_layer(args).out_channels, images = group.images.size();
  float* output = args.output + group.images.begin * args.outputs;
  const Range columns{panels.begin * kPanel, min_of(panels.end * kPanel, args.outputs)};
  const float* from = group.buffers.pooled + columns.begin;
  int64_t from_stride = map_pitch(depth);
  if (args.classifier) {
    const float* bias = args.classifier + round_to_panels(args.outputs) * depth;
    const int64_t stride = panels.size() * kPanel;
    product<Activation::kNone>({group.buffers.pooled, from_stride, images, depth,
                                args.classifier + panels.begin * kPanel * depth,
                                bias + columns.begin, panels.size(), tile, stride});
    from = tile;
    from_stride = stride;
  }
  for (int64_t n = 0; n < images; ++n) {
    __builtin_memcpy(output + n * args.outputs + columns.begin, from + n * from_stride,
                     sizeof(float) * columns.size());
  }
}

// Phases of a group: the stem, two parts of each block (fused: one, and an empty one), pooling, and
// the classifier.
inline int64_t phase_count(const MobileNetArgs& args) { return 1 + 2 * args.block_count + 2; }

inline int64_t phase_items(const MobileNetArgs& args, int64_t images, int64_t workers,
                           int64_t phase) {
  if (phase == 0) return stem_items(args.stem, images, workers);
  const int64_t block = (phase - 1) / 2;
  if (block < args.block_count) {
    return BlockSchedule(args.blocks[block], images, workers).items((phase - 1) % 2);
  }
  const int64_t channels =
      phase == phase_count(args) - 1 ? args.outputs : last_layer(args).out_channels;
  return min_of(workers, round_to_panels(channels) / kPanel);
}

template <Activation kActivation>
void run_phase(const Group& group, int64_t phase, int64_t item, float* tile) {
  const MobileNetArgs& args = group.args;
  const int64_t block = (phase - 1) / 2;
  if (phase == 0) {
    const int64_t rows = group.images.size() * args.stem.conv.out_height;
    const int64_t items = stem_items(args.stem, group.images.size(), group.workers);
    return stem_rows<kActivation>(args, group.images.begin, share(item, items, rows),
                                  group.buffers.maps[0], tile);
  }
  if (block < args.block_count) {
    return run_block<kActivation>(group, block, (phase - 1) % 2, item, tile);
  }
  const bool last = phase == phase_count(args) - 1;
  const int64_t panels =
      round_to_panels(last ? args.outputs : last_layer(args).out_channels) / kPanel;
  const Range mine = share(item, min_of(group.workers, panels), panels);
  last ? classify(group, mine, tile) : pool(group, mine);
}

template <Activation kActivation>
void run_group(const Group& group, float* tile) {
  for (int64_t phase = 0; phase < phase_count(group.args); ++phase) {
    const int64_t items = phase_items(group.args, group.images.size(), group.workers, phase);
    for (int64_t i = 0; i < items; ++i) run_phase<kActivation>(group, phase, i, tile);
  }
}

// What a worker needs beside the maps: the stem's rows, a depthwise tile, or logits.
inline int64_t tile_bytes(const MobileNetArgs& args, const Groups& groups) {
  int64_t bytes = max_of(StemRing(args.stem.conv, nullptr).bytes,
                         groups.images * round_to_panels(args.outputs) * kFloatBytes);
  const int64_t workers = groups.shared ? args.workers : 1;
  for (int64_t i = 0; i < args.block_count; ++i) {
    const MobileNetLayer& block = args.blocks[i];
    const BlockSchedule schedule(block, groups.images, workers);
    const int64_t pitch = map_pitch(block.conv.channels);
    const int64_t rows = ceil_div(schedule.rows, max_of(1, schedule.tiles));
    bytes = max_of(bytes, rows * block.conv.out_width * pitch * kFloatBytes);
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
