// Pixels of a dense convolution as a pointwise one takes them: for each output the patch of the
// image that it reads, rows of taps one after the other. Patches overlap, so they are written to a
// tile in L2 and multiplied there, never to memory. The image rows below a row of outputs are
// staged first, with their padding: then a patch is K runs of values, copied in whole vectors.
#pragma once

#include "kernels/cpu/gemm.inl.h"
#include "kernels/cpu/memory.h"
#include "kernels/cpu/rows.inl.h"

namespace mobilenet_ext::cpu {
namespace {

inline bool has_patches(const ConvShape& s) { return s.kernel > 0; }

// K staged rows of a padded image; a vector may be read past the last.
template <typename A>
struct PatchRows {
  A* data;
  int64_t stride;  // from a row to the next

  PatchRows(const ConvShape& s, Arena& arena)
      : stride((s.in_width + s.pad_left + s.pad_right) * s.channels) {
    data = arena.take<A>(has_patches(s) ? s.kernel * stride + kLanes<A> : 0);
  }
};

// So many pixels or patches, and a vector past the last: a patch is written in whole ones.
template <typename A>
inline Row<A> staged_patches(int64_t channels, int64_t pixels, Arena& arena) {
  const int64_t pitch = row_pitch(channels);
  return {arena.take<A>(pixels * pitch + kLanes<A>), pixels, pitch};
}

// The rows that row y of an image's outputs reads.
template <typename T, typename A>
inline void stage_patch_rows(const ConvShape& s, const T* image, int64_t y,
                             const PatchRows<A>& rows) {
  const int64_t width = s.in_width * s.channels, left = s.pad_left * s.channels;
  for (int64_t k = 0; k < s.kernel; ++k) {
    const int64_t from = y * s.stride - s.pad_top + k;
    A* to = rows.data + k * rows.stride;
    const bool is_inside = from >= 0 && from < s.in_height;
    __builtin_memset(to, 0, sizeof(A) * (is_inside ? left : rows.stride));
    if (!is_inside) continue;
    to += left;
    for_each_vector<A>(width, [&](int64_t i, auto lanes) {
      ask_ahead(image + from * width + i);
      store(to + i, load(image + from * width + i, lanes), lanes);
    });
    __builtin_memset(to + width, 0, sizeof(A) * s.pad_right * s.channels);
  }
}

// What follows a patch in `to` are any values.
template <typename T, typename A>
inline void stage_patches(const ConvShape& s, const T* images, Range pixels,
                          const PatchRows<A>& rows, Row<A> to) {
  const int64_t run = s.kernel * s.channels, step = s.stride * s.channels;
  const int64_t image_size = s.in_height * s.in_width * s.channels;
  for (int64_t p = pixels.begin; p < pixels.end;) {
    const int64_t row = divide(p, s.out_width), image = divide(row, s.out_height);
    const int64_t end = min_of((row + 1) * s.out_width, pixels.end);
    stage_patch_rows(s, images + image * image_size, row - image * s.out_height, rows);
    const A* from = rows.data + (p - row * s.out_width) * step;
    for (; p < end; ++p, from += step) {
      A* patch = to.at(p - pixels.begin, 0);
      for (int64_t k = 0; k < s.kernel; ++k, patch += run) {
        for (int64_t i = 0; i < run; i += kLanes<A>) {
          store(patch + i, load(from + k * rows.stride + i, AllLanes{}), AllLanes{});
        }
      }
    }
  }
}

}  // namespace
}  // namespace mobilenet_ext::cpu
