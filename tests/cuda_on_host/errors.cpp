// What the runtime calls its errors.
#include "cuda_runtime_api.h"

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "cudaSuccess";
    case cudaErrorInvalidValue: return "cudaErrorInvalidValue";
    case cudaErrorInvalidConfiguration: return "cudaErrorInvalidConfiguration";
  }
  return "an unknown error";
}

const char* cudaGetErrorString(cudaError_t) { return "from the CUDA runtime of the tests"; }
