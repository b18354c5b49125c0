// Copies and dtype conversions, without quantization. Included by kernels.cpp after vectors.h.

constexpr std::size_t PREFETCH_AHEAD = 4096;

template <Dtype FROM, Dtype TO>
void convert_elements(const std::uint8_t* x, std::size_t count, std::uint8_t* out) {
    for (std::size_t i = 0; i < count; i += W)
        store_floats_as<TO>(out + i * element_bytes(TO), load_as_floats<FROM>(x + i * element_bytes(FROM)));
}

template <Dtype FROM>
void convert_from(Dtype to, const std::uint8_t* x, std::size_t count, std::uint8_t* out) {
    switch (to) {
        case Dtype::float32: return convert_elements<FROM, Dtype::float32>(x, count, out);
        case Dtype::float16: return convert_elements<FROM, Dtype::float16>(x, count, out);
        default: return convert_elements<FROM, Dtype::bfloat16>(x, count, out);
    }
}

void convert(Dtype from, Dtype to, const std::uint8_t* x, std::size_t count, std::uint8_t* out) {
    if (from == to) {
        std::memcpy(out, x, count * element_bytes(to));
        return;
    }
    switch (from) {
        case Dtype::float32: return convert_from<Dtype::float32>(to, x, count, out);
        case Dtype::float16: return convert_from<Dtype::float16>(to, x, count, out);
        default: return convert_from<Dtype::bfloat16>(to, x, count, out);
    }
}

HADAKV_INLINE Words read_all(const std::uint8_t* p, std::size_t nbytes, Words seen) {
    for (std::size_t i = 0; i + sizeof(Words) <= nbytes; i += sizeof(Words)) {
        if (i % 64 == 0) __builtin_prefetch(p + i + PREFETCH_AHEAD, 0, 3);
        seen ^= load<Words>(p + i);
    }
    return seen;
}

HADAKV_INLINE void write_all(std::uint8_t* p, std::size_t nbytes, Words value) {
    for (std::size_t i = 0; i + sizeof(Words) <= nbytes; i += sizeof(Words)) {
        if (i % 64 == 0) __builtin_prefetch(p + i + PREFETCH_AHEAD, 1, 3);
        store(p + i, value);
    }
}

// Reads all of x and writes all of out, in alternating steps. A step is one 4096-byte page of the larger buffer. The
// remainder after the last whole step is skipped.
void memory_loop(const std::uint8_t* x, std::size_t read_bytes, std::uint8_t* out, std::size_t write_bytes) {
    const std::size_t pages = (read_bytes > write_bytes ? read_bytes : write_bytes) / 4096;
    if (pages == 0) return;
    const std::size_t read_step = read_bytes / pages, write_step = write_bytes / pages;
    Words seen = {};
    for (std::size_t page = 0; page < pages; ++page) {
        seen = read_all(x + page * read_step, read_step, seen);
        write_all(out + page * write_step, write_step, seen);
    }
}
