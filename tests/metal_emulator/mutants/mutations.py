"""Deliberate faults: the file, the replacement, and the proofs that must detect it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutation:
    """One fault.

    Attributes:
        file: file of `hadakv_kernels.gpu`.
        right: passage that occurs exactly once.
        wrong: its replacement.
        seen_by: the proofs of "text, lint, execution" that detect the fault.
    """

    file: str
    right: str
    wrong: str
    seen_by: str = "execution"

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kernels that must show the fault."""
        if self.file in ("mlx_kernels.py", "prelude_cuda.msl"):
            return "encode", "decode"
        return ("decode",) if self.file == "decode.msl" else ("encode",)


# Start of the loop that adds the sums of lanes. Three faults change it.
_REDUCTION = "for (int d = 1; d < Layout<D>::lanes; d *= 2) {\n        HK_UNROLL\n        for (int m"

_FAULTS: dict[str, dict[str, tuple[str, str] | tuple[str, str, str]]] = {
    "codec.msl": {
        "a shuffle at twice the distance": (
            "other = simd_shuffle_xor(y[i], ushort(d))",
            "other = simd_shuffle_xor(y[i], ushort(2 * d))",
        ),
        "the sides of a shuffle": ("? -1.0f : 1.0f;\n        HK_UNROLL", "? 1.0f : -1.0f;\n        HK_UNROLL"),
        "a butterfly's sign": ("add(a, -b)", "add(b, -a)"),
        "a stage of the transform left out": ("butterflies<FIRST, ", "butterflies<2 * FIRST, "),
        "a reduction without the last distance": (_REDUCTION, _REDUCTION.replace("lanes;", "lanes / 2;")),
        "a reduction across vectors": (_REDUCTION, _REDUCTION.replace("Layout<D>::lanes;", "32;")),
        "a reduction that starts with the far lanes": (
            _REDUCTION,
            _REDUCTION.replace("d = 1; d < Layout<D>::lanes; d *= 2", "d = Layout<D>::lanes / 2; d > 0; d /= 2"),
        ),
        "a product fused into a sum": (
            "s = add(s, mul(a[first + i], b[first + i]));",
            "s = fma(a[first + i], b[first + i], s);",
        ),
        "a sign table off by one": ("element & 7u)", "(element + 1) & 7u)"),
        "a partially filled codebook": (
            "i < uint(Lookup<BITS>::centroids)",
            "i < uint(Lookup<BITS>::centroids) / 2",
        ),
        "an index with a bit of the next index": ("(1u << BITS) - 1u) << entry", "(2u << BITS) - 1u) << entry"),
        "a pointer without an address space": ("butterflies(HK_THREAD float* y)", "butterflies(float* y)", "lint"),
        "a pointer to the wrong address space": (
            "look_up(const HK_THREADGROUP_ARGUMENT float*",
            "look_up(const HK_DEVICE float*",
            "lint",
        ),
    },
    "encode.msl": {
        "the gain divided by the norm in one step": (
            "mul(norm[n] > 1e-10f ? divide(1.0f, norm[n]) : 0.0f, c.gain)",
            "(norm[n] > 1e-10f ? divide(c.gain, norm[n]) : 0.0f)",
        ),
        "the smallest norm treated as nonzero": ("norm[n] > 1e-10f ?", "norm[n] >= 1e-10f ?"),
        "a smaller smallest norm for unbiased norms": ("norm[n] > 1e-10f &&", "norm[n] > 0.0f &&"),
        "a value on a boundary gets the index above": ("value > cell.x", "value >= cell.x"),
        "a value that is not clamped": ("clamp_to_one(fma(v, c.scale, 0.5f))", "fma(v, c.scale, 0.5f)"),
        "partially filled cells": ("i < uint(Lookup<BITS>::cells)", "i < uint(Lookup<BITS>::cells) / 2"),
        "a cell rounded down": ("::last), 8388608.0f", "::last), 8388607.5f"),
        "nibbles swapped": ("= low | (high << 16);", "= high | (low << 16);"),
        "the last byte of 5-bit indices": ("uchar(high >> 12)", "uchar(high >> 11)"),
        "a read past the last vector": ("row < rows ? row : rows - 1", "row"),
        "a row written past the last one": ("if (exists) {\n                const uint octet", "{\n const uint octet"),
        "a norm written by every lane": ("}\n        if (exists && sub_lane == 0) {", "}\n        if (exists) {"),
        "no barrier after the tables": ("    threadgroup_barrier(mem_flags::mem_threadgroup);\n", ""),
        "a reduction that only some lanes reach": (
            "block_sums<D>(y, y, squares);",
            "if (exists) { block_sums<D>(y, y, squares); }",
            "lint, execution",
        ),
        "division by a zero projection": ("!(products[n] <= 0.0f)", "!(products[n] < 0.0f)"),
        "division by a negative projection": (" && !(products[n] <= 0.0f)", ""),
        "a vector's read offset in 32 bits": ("x + ulong(row < rows", "x + (row < rows"),
        "a row's offset in 32 bits": ("stream.packed + ulong(row) *", "stream.packed + row *"),
        "a scaled value's offset in 32 bits": ("stream.scaled[ulong(row) *", "stream.scaled[row *"),
        "a float16 vector's offset in 32 bits": ("values + ulong(row) *", "values + row *"),
        "double precision": ("const float a = sign", "const double a = sign", "lint"),
        "a literal without f": (": 0.0f, c.gain)", ": 0.0, c.gain)", "lint"),
    },
    "encode_kernel.msl": {
        "one row too many": ("KEncoder::run(stream, rows[0], place", "KEncoder::run(stream, rows[0] + 1, place"),
        "a placeholder that is not written": ("scaled[0] = rms[0] = 0.0f;", "scaled[0] = 0.0f;"),
        "strides that overlap": ("threadgroups_per_grid.x * simd", "threadgroups_per_grid.x + 0 * simd"),
        "both streams in one buffer": ("v_table, signs, v_packed", "v_table, signs, k_packed"),
    },
    "decode.msl": {
        "a norm divided rather than multiplied": ("mul(stored.norm[n], c.inv_sqrt)", "divide(stored.norm[n], c.gain)"),
        "a bit of an index lost": ("(uint(q[2]) << 8)", "(uint(q[2]) << 7)"),
        "values written past the last vector": ("if (row < rows) {\n            HK_UNROLL", "{\n            HK_UNROLL"),
        "a stored vector read past the last one": ("row < rows ? row : rows - 1", "row"),
        "infinite float16 values": ("value > 65504.0f ? 65504.0f : value < -65504.0f ? -65504.0f : value", "value"),
        "other values limited as float16 is": (
            "float fitting(const HK_DEVICE T*, float value) {\n    return value;",
            "float fitting(const HK_DEVICE T*, float value) {\n    return value > 65504.0f ? 65504.0f : value;",
        ),
        "a stored vector's offset in 32 bits": ("const ulong there", "const uint there"),
        "a decoded vector's offset in 32 bits": ("values + ulong(row) *", "values + row *"),
    },
    "prelude_metal.msl": {
        "a bfloat16 in the wrong half": ("y[2] = float_of(words.y << 16)", "y[2] = float_of(words.y)"),
        "contraction allowed": ("#pragma METAL fp contract(off)\n", "", "text"),
        "a fast square root": ("metal::precise::sqrt", "metal::fast::sqrt", "text"),
    },
    "mlx_kernels.py": {
        "a threadgroup that ends within a simdgroup": ("THREADGROUP = 128", "THREADGROUP = 120"),
        "a grid in threadgroups rather than threads": ("MAX_THREADGROUPS) * THREADGROUP,", "MAX_THREADGROUPS),"),
        "a grid without the second stream": ("* THREADGROUP, 1, streams)", "* THREADGROUP, 1, 1)"),
        "a grid rounded down": ("-(-rows // vectors)", "rows // vectors"),
        "tables swapped": ("k_table, v_table, signs, mx", "v_table, k_table, signs, mx"),
        "inputs swapped": ('["k", "v", "k_table"', '["v", "k", "k_table"', "text, execution"),
        "outputs swapped": ('"k_packed", "k_norms", "v_p', '"k_norms", "k_packed", "v_p', "text, lint, execution"),
        "constants swapped": ("float(spec.inv_sqrt), float(spec.gain)", "float(spec.gain), float(spec.inv_sqrt)"),
        "boundaries and counts swapped": (
            "[fitted.boundary, fitted.below.astype(np.float32)]",
            "[fitted.below.astype(np.float32), fitted.boundary]",
        ),
        "K's template arguments for V": (
            'stream_template("V_", v_spec)',
            'stream_template("V_", k_spec)',
            "text, execution",
        ),
        "a byte-layout index as wide as its bits": (
            'return 8 if spec.codec.layout == "byte" else spec.codec.bits',
            "return spec.codec.bits",
            "text, execution",
        ),
        "a number of rows that is not an array": (
            "v_table, signs, mx.array([rows], mx.uint32)]",
            "v_table, signs, mx.array(rows, mx.uint32)]",
            "text, lint, execution",
        ),
        "space for one norm instead of two": ("(rows, spec.norms) if spec.norms", "(rows, 1) if spec.norms"),
        "rotated back although not requested": (
            'inverse and spec.codec.rotation == "hadamard"',
            'spec.codec.rotation == "hadamard"',
            "text, execution",
        ),
        "values of the wrong dtype": (
            "output_dtypes=[MX_DTYPES[dtype]]",
            "output_dtypes=[mx.float32]",
            "text, execution",
        ),
    },
    "batching.py": {
        "every part from the start": ("        start = stop\n", ""),
        "different codecs joined": (", *map(str, spec.codec.to_mapping().values()))", ")"),
        "different dtypes joined": ("str(stream.x.dtype), *map(", "*map("),
        "two streams of different sizes in one launch": ("shape = (size, *_batch_key", "shape = (0, *_batch_key"),
        "every group split in two": ("if len(group) == 2 and", "if len(group) == 2 or"),
        "single streams never paired": (
            "shape = (size, *_batch_key",
            "shape = (size, str(group), *_batch_key",
        ),
    },
    "backend.py": {
        "results in the order of launches": ("[results[i] for i in range(len(streams))]", "list(results.values())"),
        "the two streams' results swapped": ("in zip((first, second), whole", "in zip((second, first), whole"),
        "K's results for V": ("outputs[2 * i], outputs[2 * i + 1]", "outputs[0], outputs[1]"),
        "a placeholder as the norms of float16": (
            "kept: Any = norms if spec.norms else",
            "kept: Any = norms if True else",
        ),
        "a launch without vectors": (
            "        if rows == 0:\n            return [Encoded(",
            "        if False:\n            return [Encoded(",
        ),
        "negative strides passed on": ("if min(array.strides, default=0) < 0:", "if False:"),
        "a part that keeps the whole batch": ("return Encoded(keep(part.packed), keep(part.norms))", "return part"),
        "a copy that shares memory": ("joined = joined + mx.array(0, joined.dtype)", "pass"),
        "small results on the device": ("if packed.nbytes < SMALL_NBYTES:", "if False:"),
    },
}

MUTATIONS = {name: Mutation(file, *fault) for file, faults in _FAULTS.items() for name, fault in faults.items()}

# Only a CUDA device can show these faults, because nothing else compiles the text. A missing barrier is not among them,
# because timing may hide it. Faults that only repeat work, such as too few simdgroups per threadgroup, are not either.
_IN_THE_CUDA_PRELUDE = {
    "products fused into sums": (
        "return __fmul_rn(a, b); }\nHK_FN float add(float a, float b) { return __fadd_rn(a, b); }",
        "return a * b; }\nHK_FN float add(float a, float b) { return a + b; }",
    ),
    "a fast division": ("__fdiv_rn(a, b)", "__fdividef(a, b)"),
    "a root rounded down": ("__fsqrt_rn", "__fsqrt_rd"),
    "a value that is not clamped": ("__saturatef(a)", "a"),
    "bits converted as a number": ("__float_as_uint(a)", "__float2uint_rn(a)"),
    "a shuffle from the lane above": ("__shfl_xor_sync", "__shfl_down_sync"),
    "a simdgroup of 16 lanes": ("(threadIdx.x & 31u)", "(threadIdx.x & 15u)"),
    "simdgroups of 64 threads": ("(threadIdx.x >> 5)", "(threadIdx.x >> 6)"),
    "the thread for the threadgroup": (
        "threadgroup_position_in_grid blockIdx",
        "threadgroup_position_in_grid threadIdx",
    ),
    "threads for threadgroups": ("threadgroups_per_grid gridDim", "threadgroups_per_grid blockDim"),
    "the words of float32 swapped": ("y[0] = float_of(words.x)", "y[0] = float_of(words.y)"),
    "the halves of float16 swapped": ("y[2 * i] = pair.x", "y[2 * i] = pair.y"),
    "the halves of bfloat16 swapped": ("float_of(pairs[i] << 16)", "float_of(pairs[i] & 0xffff0000u)"),
    "float32 stored in the wrong place": ("reinterpret_cast<float4*>(p)[1]", "reinterpret_cast<float4*>(p)[0]"),
    "float16 cut off": (
        "__floats2half2_rn(y[2 * i], y[2 * i + 1])",
        "__halves2half2(__float2half_rz(y[2 * i]), __float2half_rz(y[2 * i + 1]))",
    ),
    "bfloat16 cut off": (
        "__floats2bfloat162_rn(y[2 * i], y[2 * i + 1])",
        "__halves2bfloat162(__float2bfloat16_rz(y[2 * i]), __float2bfloat16_rz(y[2 * i + 1]))",
    ),
}
CUDA_MUTATIONS = {name: Mutation("prelude_cuda.msl", *fault, "cuda") for name, fault in _IN_THE_CUDA_PRELUDE.items()}
