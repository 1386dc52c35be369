// Hides AVX-512 and AMX from a process, so that every library in it does what it does on a machine
// that has AVX2 only:
//
//   gcc -O2 -shared -fPIC -o without_avx512.so benchmarks/without_avx512.c
//   export GLIBC_TUNABLES=glibc.cpu.hwcaps=-AVX512F,-AVX512VL ATEN_CPU_CAPABILITY=avx2
//   LD_PRELOAD=$PWD/without_avx512.so python benchmarks/latency.py --grid
//
// Libraries ask the CPUID instruction what there is, and Linux can make it fault: arch_prctl(2),
// ARCH_SET_CPUID, on Intel since Ivy Bridge. The fault is answered with CPUID's own answer, less
// what is to be hidden. Threads inherit this, child processes load the library again, and nobody
// may take the fault's signal away (compilers, which torch.compile runs, try to). torch.compile
// itself reads /proc/cpuinfo, so ATEN_CPU_CAPABILITY=avx2 tells it, and it must not find code that
// it cached with AVX-512: give it a TORCHINDUCTOR_CACHE_DIR of its own.
//
// Where it cannot be made to fault, on AMD, libraries with breakpoints in its place
// (without_avx512.py) get the same answer, and the others have to be told:
//
//   export WITHOUT_AVX512=breakpoints
//   export ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 MOBILENET_EXT_ISA=avx2
#define _GNU_SOURCE
#include <cpuid.h>
#include <dlfcn.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

enum { kSetCpuid = 0x1012 };  // ARCH_SET_CPUID; 0: CPUID faults, 1: it answers

// Bits of leaf 7: AVX-512 F, DQ, IFMA, PF, ER, CD, BW, VL; VBMI, VBMI2, VNNI, BITALG, VPOPCNTDQ;
// 4VNNIW, 4FMAPS, VP2INTERSECT, AMX-BF16, FP16, AMX-TILE, AMX-INT8. Of its second part: BF16.
static const unsigned kHiddenB = 3u << 16 | 1u << 21 | 7u << 26 | 3u << 30;
static const unsigned kHiddenC = 1u << 1 | 1u << 6 | 1u << 11 | 1u << 12 | 1u << 14;
static const unsigned kHiddenD = 1u << 2 | 1u << 3 | 1u << 8 | 0xfu << 22;
static const unsigned kHiddenSecondA = 1u << 5;

typedef int SigactionFunction(int, const struct sigaction*, struct sigaction*);

static int set_handler(int number, const struct sigaction* new, struct sigaction* old) {
  static SigactionFunction* next;
  if (!next) next = (SigactionFunction*)dlsym(RTLD_NEXT, "sigaction");
  return next(number, new, old);
}

int sigaction(int number, const struct sigaction* new, struct sigaction* old) {
  return set_handler(number, number == SIGSEGV || number == SIGTRAP ? NULL : new, old);
}

sighandler_t signal(int number, sighandler_t handler) {
  struct sigaction action = {.sa_handler = handler, .sa_flags = SA_RESTART}, old;
  return sigaction(number, &action, &old) ? SIG_ERR : old.sa_handler;
}

// CPUID's own answer in the registers, less what is to be hidden.
static void answer(greg_t* registers) {
  const unsigned leaf = registers[REG_RAX], part = registers[REG_RCX];
  unsigned a, b, c, d;
  __cpuid_count(leaf, part, a, b, c, d);
  if (leaf == 7 && part == 0) b &= ~kHiddenB, c &= ~kHiddenC, d &= ~kHiddenD;
  if (leaf == 7 && part == 1) a &= ~kHiddenSecondA;
  registers[REG_RAX] = a;
  registers[REG_RBX] = b;
  registers[REG_RCX] = c;
  registers[REG_RDX] = d;
}

// A fault or breakpoint of the program itself: let it happen again.
static void give_up(int number) {
  const struct sigaction fatal = {.sa_handler = SIG_DFL};
  set_handler(number, &fatal, NULL);
}

static void at_fault(int number, siginfo_t* info, void* context) {
  greg_t* registers = ((ucontext_t*)context)->uc_mcontext.gregs;
  const unsigned char* code = (const unsigned char*)registers[REG_RIP];
  if (info->si_code != SI_KERNEL || code[0] != 0x0f || code[1] != 0xa2) return give_up(number);
  syscall(SYS_arch_prctl, kSetCpuid, 1);
  answer(registers);
  syscall(SYS_arch_prctl, kSetCpuid, 0);
  registers[REG_RIP] += 2;
}

// The breakpoint is behind already: what follows it is a nop.
static void at_breakpoint(int number, siginfo_t* info, void* context) {
  greg_t* registers = ((ucontext_t*)context)->uc_mcontext.gregs;
  const unsigned char* code = (const unsigned char*)registers[REG_RIP];
  if (info->si_code == SI_KERNEL && code[-1] == 0xcc && code[0] == 0x90) return answer(registers);
  if (info->si_code == SI_KERNEL && code[-1] == 0xcc) registers[REG_RIP] -= 1;
  give_up(number);
}

static void handle(int number, void handler(int, siginfo_t*, void*)) {
  struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_NODEFER};
  set_handler(number, &action, NULL);
}

__attribute__((constructor)) static void hide(void) {
  const char* way = getenv("WITHOUT_AVX512");
  if (way && !strcmp(way, "breakpoints")) return handle(SIGTRAP, at_breakpoint);
  handle(SIGSEGV, at_fault);
  if (syscall(SYS_arch_prctl, kSetCpuid, 0)) {
    perror("without_avx512: CPUID cannot be made to fault here");
    exit(1);
  }
}
