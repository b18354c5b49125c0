#include "engine.h"

#include <algorithm>
#include <stdexcept>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

namespace hadakv {
namespace {

// A chunk is large enough to pay for waking a thread, and small enough to balance threads of unequal speed.
constexpr std::size_t CHUNK_ELEMENTS = 32768;

#if defined(__x86_64__)
// Reads cpuid, because not every compiler's __builtin_cpu_supports knows "f16c".
bool has_f16c() {
    unsigned eax, ebx, ecx, edx;
    return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (ecx & bit_F16C);
}

bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c(); }

bool has_avx512() {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512vbmi");
}
#endif

const Kernels& find_kernels(const std::string& isa) {
    for (const Kernels* kernels : available_kernels())
        if (isa == kernels->isa) return *kernels;
    throw std::invalid_argument("isa \"" + isa + "\" is not available on this processor");
}

int checked_threads(int threads) {
    if (threads < 1) throw std::invalid_argument("threads must be at least 1");
    return threads;
}

}  // namespace

std::vector<const Kernels*> available_kernels() {
#if defined(__x86_64__)
    __builtin_cpu_init();
    std::vector<const Kernels*> all;
    if (has_avx2() && has_avx512()) all.push_back(&kernels_avx512());
    if (has_avx2()) all.push_back(&kernels_avx2());
    all.push_back(&kernels_baseline());
    return all;
#else
    return {&kernels_neon()};
#endif
}

Engine::Engine(const std::string& isa, int threads)
    : kernels_(find_kernels(isa)), pool_(checked_threads(threads)) {}

// Calls work(first, count) for chunks that cover [0, total). Any thread may take any chunk.
template <class Work>
void Engine::in_chunks(std::size_t total, std::size_t chunk_size, Work work) {
    struct Job {
        Work work;
        std::size_t total, chunk_size;
    } job{work, total, chunk_size};
    const auto task = [](void* context, std::size_t chunk) {
        const Job& j = *static_cast<const Job*>(context);
        const std::size_t first = chunk * j.chunk_size;
        j.work(first, std::min(j.chunk_size, j.total - first));
    };
    pool_.run(task, &job, (total + chunk_size - 1) / chunk_size);
}

void Engine::encode(const Plan& plan, Dtype dtype, const std::uint8_t* x, std::size_t rows, std::uint8_t* packed,
                    std::uint8_t* norms) {
    const std::size_t x_bytes = plan.head_dim * element_bytes(dtype);
    in_chunks(rows, CHUNK_ELEMENTS / plan.head_dim, [&](std::size_t first, std::size_t count) {
        kernels_.encode(plan, dtype, x + first * x_bytes, count, packed + first * plan.row_bytes(),
                        norms + first * plan.norm_bytes());
    });
}

void Engine::decode(const Plan& plan, Dtype dtype, bool inverse, const std::uint8_t* packed,
                    const std::uint8_t* norms, std::size_t rows, std::uint8_t* out) {
    const std::size_t out_bytes = plan.head_dim * element_bytes(dtype);
    in_chunks(rows, CHUNK_ELEMENTS / plan.head_dim, [&](std::size_t first, std::size_t count) {
        kernels_.decode(plan, dtype, inverse, packed + first * plan.row_bytes(), norms + first * plan.norm_bytes(),
                        count, out + first * out_bytes);
    });
}

void Engine::convert(Dtype from, Dtype to, const std::uint8_t* x, std::size_t count, std::uint8_t* out) {
    in_chunks(count, CHUNK_ELEMENTS, [&](std::size_t first, std::size_t n) {
        kernels_.convert(from, to, x + first * element_bytes(from), n, out + first * element_bytes(to));
    });
}

void Engine::memory_loop(const std::uint8_t* x, std::size_t read_bytes, std::uint8_t* out, std::size_t write_bytes) {
    constexpr std::size_t PARTS = 256;
    in_chunks(PARTS, 1, [&](std::size_t part, std::size_t) {
        const std::size_t read = read_bytes / PARTS, write = write_bytes / PARTS;
        kernels_.memory_loop(x + part * read, read, out + part * write, write);
    });
}

}  // namespace hadakv
