// One build of the kernels and the threads that run it. The caller checks sizes.
#pragma once

#include <string>
#include <vector>

#include "kernels.h"
#include "thread_pool.h"

namespace hadakv {

// Returns the builds that this processor can run, fastest first.
std::vector<const Kernels*> available_kernels();

class Engine {
public:
    // Throws std::invalid_argument if this processor lacks the isa, or if threads < 1.
    Engine(const std::string& isa, int threads);

    const char* isa() const { return kernels_.isa; }
    int threads() const { return pool_.threads(); }

    void encode(const Plan& plan, Dtype dtype, const std::uint8_t* x, std::size_t rows, std::uint8_t* packed,
                std::uint8_t* norms);
    void decode(const Plan& plan, Dtype dtype, bool inverse, const std::uint8_t* packed, const std::uint8_t* norms,
                std::size_t rows, std::uint8_t* out);
    void convert(Dtype from, Dtype to, const std::uint8_t* x, std::size_t count, std::uint8_t* out);
    void memory_loop(const std::uint8_t* x, std::size_t read_bytes, std::uint8_t* out, std::size_t write_bytes);

private:
    template <class Work>
    void in_chunks(std::size_t total, std::size_t chunk_size, Work work);

    const Kernels& kernels_;
    ThreadPool pool_;
};

}  // namespace hadakv
