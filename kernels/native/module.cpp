// Python module: checks buffer sizes, releases the GIL, and calls the engine.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>

#include "engine.h"

namespace nb = nanobind;
using namespace hadakv;

namespace {

// Contiguous buffer of bytes. Unlike nb::ndarray, it accepts read-only and misaligned arrays without a copy.
class Buffer {
public:
    explicit Buffer(nb::handle object, int flags = PyBUF_SIMPLE) {
        if (PyObject_GetBuffer(object.ptr(), &view_, flags) != 0) throw nb::python_error();
    }
    ~Buffer() { PyBuffer_Release(&view_); }
    Buffer(const Buffer&) = delete;
    Buffer& operator=(const Buffer&) = delete;

    std::uint8_t* bytes() const { return static_cast<std::uint8_t*>(view_.buf); }
    std::size_t size() const { return static_cast<std::size_t>(view_.len); }

    void expect(std::size_t nbytes, const char* what) const {
        if (size() != nbytes)
            throw std::invalid_argument(std::string(what) + " has " + std::to_string(size()) + " bytes, must have " +
                                        std::to_string(nbytes));
    }

    // Returns the number of items of that size. Throws if the buffer does not hold whole items.
    std::size_t count(std::size_t item_bytes, const char* what) const {
        expect(size() / item_bytes * item_bytes, what);
        return size() / item_bytes;
    }

private:
    Py_buffer view_;
};

class WritableBuffer : public Buffer {
public:
    explicit WritableBuffer(nb::handle object) : Buffer(object, PyBUF_WRITABLE) {}
};

Dtype checked_dtype(int dtype) {
    if (dtype < 0 || dtype > 2) throw std::invalid_argument("dtype must be 0 (float32), 1 (float16) or 2 (bfloat16)");
    return static_cast<Dtype>(dtype);
}

void make_plan(Plan* plan, int head_dim, int bits, int field_bits, bool rotated, bool unbiased, float inv_sqrt,
               float gain, nb::handle centroids, nb::handle boundaries, nb::handle sign_bits) {
    if (bits < 2 || bits > 8 || head_dim < 64 || head_dim > MAX_HEAD_DIM)
        throw std::invalid_argument("unsupported head_dim or bits");
    const Buffer centroid_table(centroids), boundary_table(boundaries), sign_table(sign_bits);
    centroid_table.expect(sizeof(float) << bits, "centroids");
    boundary_table.expect((sizeof(float) << bits) - sizeof(float), "boundaries");
    sign_table.expect(head_dim / 8, "sign_bits");
    new (plan) Plan;
    build_plan(*plan, {head_dim, bits, field_bits, rotated, unbiased, inv_sqrt, gain,
                       reinterpret_cast<const float*>(centroid_table.bytes()),
                       reinterpret_cast<const float*>(boundary_table.bytes()), sign_table.bytes()});
}

void encode(Engine& engine, const Plan& plan, int dtype, nb::handle x, nb::handle packed, nb::handle norms) {
    const Dtype type = checked_dtype(dtype);
    const Buffer in(x);
    const WritableBuffer packed_out(packed), norms_out(norms);
    const std::size_t rows = in.count(plan.head_dim * element_bytes(type), "x");
    packed_out.expect(rows * plan.row_bytes(), "packed");
    norms_out.expect(rows * plan.norm_bytes(), "norms");
    const nb::gil_scoped_release released;
    engine.encode(plan, type, in.bytes(), rows, packed_out.bytes(), norms_out.bytes());
}

void decode(Engine& engine, const Plan& plan, int dtype, bool inverse, nb::handle packed, nb::handle norms,
            nb::handle out) {
    const Dtype type = checked_dtype(dtype);
    const Buffer packed_in(packed), norms_in(norms);
    const WritableBuffer values(out);
    const std::size_t rows = packed_in.count(plan.row_bytes(), "packed");
    norms_in.expect(rows * plan.norm_bytes(), "norms");
    values.expect(rows * plan.head_dim * element_bytes(type), "out");
    const nb::gil_scoped_release released;
    engine.decode(plan, type, inverse, packed_in.bytes(), norms_in.bytes(), rows, values.bytes());
}

void convert(Engine& engine, int from, int to, nb::handle x, nb::handle out) {
    const Dtype from_type = checked_dtype(from), to_type = checked_dtype(to);
    const Buffer in(x);
    const WritableBuffer values(out);
    const std::size_t vectors = in.count(64 * element_bytes(from_type), "x");
    values.expect(vectors * 64 * element_bytes(to_type), "out");
    const nb::gil_scoped_release released;
    engine.convert(from_type, to_type, in.bytes(), vectors * 64, values.bytes());
}

void memory_loop(Engine& engine, nb::handle x, nb::handle out) {
    const Buffer in(x);
    const WritableBuffer written(out);
    const nb::gil_scoped_release released;
    engine.memory_loop(in.bytes(), in.size(), written.bytes(), written.size());
}

std::vector<std::string> isas() {
    std::vector<std::string> names;
    for (const Kernels* kernels : available_kernels()) names.emplace_back(kernels->isa);
    return names;
}

}  // namespace

NB_MODULE(_native, m) {
    m.doc() = "The codec in C++. Its bytes equal those of hadakv_kernels.reference.";
    m.def("isas", &isas, "Return the instruction sets with kernels for this processor, fastest first.");
    nb::class_<Plan>(m, "Plan", "A codec at a head_dim, with its tables.")
        .def("__init__", &make_plan, nb::kw_only(), nb::arg("head_dim"), nb::arg("bits"), nb::arg("field_bits"),
             nb::arg("rotated"), nb::arg("unbiased"), nb::arg("inv_sqrt"), nb::arg("gain"), nb::arg("centroids"),
             nb::arg("boundaries"), nb::arg("sign_bits"));
    nb::class_<Engine>(m, "Engine", "Kernels for one instruction set, and the threads that run them.")
        .def(nb::init<const std::string&, int>(), nb::arg("isa"), nb::arg("threads"))
        .def_prop_ro("isa", &Engine::isa)
        .def_prop_ro("threads", &Engine::threads)
        .def("encode", &encode, nb::arg("plan"), nb::arg("dtype"), nb::arg("x"), nb::arg("packed"), nb::arg("norms"))
        .def("decode", &decode, nb::arg("plan"), nb::arg("dtype"), nb::arg("inverse"), nb::arg("packed"),
             nb::arg("norms"), nb::arg("out"))
        .def("convert", &convert, nb::arg("from_dtype"), nb::arg("to_dtype"), nb::arg("x"), nb::arg("out"))
        .def("memory_loop", &memory_loop, nb::arg("x"), nb::arg("out"));
}
