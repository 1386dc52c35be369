// BatchNorm's vector formulas, one channel a thread.
#include "kernels/batch_norm_vectors.h"
#include "kernels/cuda/kernels.h"
#include "kernels/cuda/launch.h"

namespace mobilenet_ext::cuda {

namespace {

constexpr int kVectorThreads = 128;

inline __device__ int64_t channel_of_thread() {
  return static_cast<int64_t>(blockIdx.x) * kVectorThreads + threadIdx.x;
}

template <typename A>
__global__ void __launch_bounds__(kVectorThreads) affine_kernel(BatchNormAffineArgs args) {
  const int64_t c = channel_of_thread();
  if (c < args.channels) compute_affine<A>(args, c);
}

template <typename A>
__global__ void __launch_bounds__(kVectorThreads)
    gradient_map_kernel(BatchNormGradientMapArgs args) {
  const int64_t c = channel_of_thread();
  if (c < args.channels) compute_gradient_map<A>(args, c);
}

template <typename Args>
cudaError_t launch_vectors(void (*of_float)(Args), void (*of_double)(Args), const Args& args,
                           cudaStream_t stream) {
  const int64_t blocks = (args.channels + kVectorThreads - 1) / kVectorThreads;
  return launch(args.dtype == DType::kFloat64 ? of_double : of_float, blocks, kVectorThreads,
                stream, args);
}

}  // namespace

cudaError_t batch_norm_affine(const BatchNormAffineArgs& args, cudaStream_t stream) {
  return launch_vectors(&affine_kernel<float>, &affine_kernel<double>, args, stream);
}

cudaError_t batch_norm_gradient_map(const BatchNormGradientMapArgs& args, cudaStream_t stream) {
  return launch_vectors(&gradient_map_kernel<float>, &gradient_map_kernel<double>, args, stream);
}

}  // namespace mobilenet_ext::cuda
