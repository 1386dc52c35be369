// The patches of an image as a matrix, for the stem: 3 channels are too few for the tensor cores of
// a convolution, while 27 values a pixel are a row for those of a product. A thread block writes
// one row of output pixels, a thread 8 elements at a time; what neighbours read again is in L1.
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/storage.h"

namespace mobilenet_ext::cuda {

namespace {

constexpr int kPatchThreads = 128;

// Elements by their size.
template <typename T>
__global__ void __launch_bounds__(kPatchThreads) image_patches_kernel(ImagePatchesArgs args) {
  const ConvShape& s = args.shape;
  const int64_t image = blockIdx.x / s.out_height, y = blockIdx.x - image * s.out_height;
  const T* from = static_cast<const T*>(args.input) + image * s.in_height * s.in_width * s.channels;
  T* to = static_cast<T*>(args.output) + blockIdx.x * s.out_width * args.columns;
  const int vectors = static_cast<int>(args.columns / kPatchLanes);
  const int64_t all = s.out_width * vectors;
  for (int64_t i = threadIdx.x; i < all; i += kPatchThreads) {
    const int64_t x = i / vectors;
    const int first = static_cast<int>(i - x * vectors) * static_cast<int>(kPatchLanes);
    PatchReader<T> reader(s, from, y, x, first);
    constexpr int kWide = 16 / sizeof(T);  // elements of one store
#pragma unroll
    for (int v = 0; v < kPatchLanes; v += kWide) {
      Pack<T, kWide> pack;
      for (T& element : pack.at) element = reader.next();
      store(to + i * kPatchLanes + v, pack);
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
