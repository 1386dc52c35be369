// Fused multiply-adds, float32, and nothing else: no convolution is faster than these. Twelve sums
// in registers hide the latency in the two units that x86 processors have. fma_peak.py compiles it
// for the CPU that it runs on:
//
//   cc -O2 -march=native -ffp-contract=fast -shared -fPIC -o fma_peak.so benchmarks/fma_peak.c
#if !defined(__x86_64__)
#error "other processors have other numbers of units and registers"
#endif

#if defined(__AVX512F__)
enum { kBytes = 64 };
#else
enum { kBytes = 32 };
#endif
typedef float Vector __attribute__((vector_size(kBytes)));

enum { kSums = 12 };

// Compilers may not guess what it is, so that they leave out no step.
static inline Vector add(Vector sum, Vector x, Vector y) {
  sum = sum * x + y;
  __asm__ volatile("" : "+v"(sum));
  return sum;
}

// Returns how many floating-point operations `steps` were.
double multiply_add(long steps) {
  const Vector x = (Vector){} + 0.5f, y = (Vector){} + 0.25f;
  Vector a = x, b = x, c = x, d = x, e = x, f = x, g = x, h = x, i = x, j = x, k = x, l = x;
  for (long step = 0; step < steps; ++step) {
    a = add(a, x, y), b = add(b, x, y), c = add(c, x, y), d = add(d, x, y);
    e = add(e, x, y), f = add(f, x, y), g = add(g, x, y), h = add(h, x, y);
    i = add(i, x, y), j = add(j, x, y), k = add(k, x, y), l = add(l, x, y);
  }
  return 2.0 * kSums * (double)(kBytes / sizeof(float)) * (double)steps;
}
