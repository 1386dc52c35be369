// The patches of an image as a matrix, for the stem: 3 channels are too few for the tensor cores of
// a convolution, while 27 values a pixel are a row for those of a product. A thread block writes
// one row of output pixels, a thread always the same 8 columns; what neighbours read again is in
// L1.
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/packs.h"

namespace mobilenet_ext::cuda {

namespace {

constexpr int kPatchThreads = 128;

// Elements by their size.
template <typename T>
__global__ void __launch_bounds__(kPatchThreads) image_patches_kernel(ImagePatchesArgs args) {
  constexpr int kWide = 16 / sizeof(T);  // elements of one store
  const ConvShape& s = args.shape;
  const int64_t image = blockIdx.x / s.out_height, y = blockIdx.x - image * s.out_height;
  const T* from = static_cast<const T*>(args.input) + image * s.in_height * s.in_width * s.channels;
  T* to = static_cast<T*>(args.output) + blockIdx.x * s.out_width * args.columns;
  const int vectors = static_cast<int>(args.columns / kPatchLanes);
  const int side_by_side = vectors < kPatchThreads ? vectors : kPatchThreads;
  const int width = static_cast<int>(s.out_width);
  const int pixels = kPatchThreads / side_by_side, thread = static_cast<int>(threadIdx.x);
  if (thread >= pixels * side_by_side) return;
  for (int vector = thread % side_by_side; vector < vectors; vector += side_by_side) {
    const PatchLanes<T, kPatchLanes> lanes(s, from, y, vector * kPatchLanes);
    T* pixel = to + thread / side_by_side * args.columns + vector * kPatchLanes;
    for (int x = thread / side_by_side; x < width; x += pixels, pixel += pixels * args.columns) {
#pragma unroll
      for (int first = 0; first < kPatchLanes; first += kWide) {
        Pack<T, kWide> pack;
        for (int v = 0; v < kWide; ++v) pack.at[v] = lanes.at(x, first + v);
        store(pixel + first, pack);
      }
    }
  }
}

}  // namespace

cudaError_t image_patches(const ImagePatchesArgs& args, cudaStream_t stream) {
  const int64_t blocks = args.shape.batch * args.shape.out_height;
  if (blocks == 0) return cudaSuccess;
  const int64_t bytes = element_bytes(args.dtype);
  const auto kernel = bytes == 2   ? &image_patches_kernel<uint16_t>
                      : bytes == 4 ? &image_patches_kernel<uint32_t>
                                   : &image_patches_kernel<uint64_t>;
  return launch(kernel, blocks, kPatchThreads, stream, args);
}

}  // namespace mobilenet_ext::cuda
