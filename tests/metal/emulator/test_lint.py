"""The lint accepts text that Metal accepts, and rejects text that only Metal's compiler would reject."""

import pytest

from metal_emulator import sample_kernels
from metal_emulator.lint.lint import lint


def found(source: str = sample_kernels.SOURCE, header: str = sample_kernels.HEADER, dtype: str = "float32") -> str:
    return "\n".join(map(str, lint(sample_kernels.text(source, header, dtype))))


def changed(text: str, right: str, wrong: str) -> str:
    assert right in text
    return text.replace(right, wrong)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_correct_text_has_no_findings(dtype: str) -> None:
    assert found(dtype=dtype) == ""


def test_finding_names_file_and_line() -> None:
    header = changed(sample_kernels.HEADER, "thread float* v", "float* v")

    assert (
        found(header=header)
        == "header of custom_kernel_rotate__float_64_float_float_float:6: 'v' points to no address space"
    )


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        ("thread float* v", "device float* v", "no matching function for call to 'butterfly'"),
        ("constant float signs", "float signs", "must reside in constant address space"),
        ("constant float signs", "constexpr float signs", "must reside in constant address space"),
        ("float o = simd", "double o = simd", "use of type 'double' requires"),
        ("1.0f, -1.0f", "1.0, -1.0f", "double precision constant"),
        (
            "template <int E>",
            "inline void f(thread float& x) { float& y = x; y = 1; }\ntemplate <int E>",
            "'y' points to no",
        ),
        ("template <int E>", "struct Rows { float* first; };\ntemplate <int E>", "'first' points to no address space"),
    ],
)
def test_fault_in_the_header_is_found(right: str, wrong: str, message: str) -> None:
    assert message in found(header=changed(sample_kernels.HEADER, right, wrong))


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        ("float top = 0.0f;", "float top;", "variable 'top' may be uninitialized when used"),
        ("float top = 0.0f;", "float top; if (lane == 3) top = 0.0f;", "may be uninitialized when used"),
        (
            "float v[E];",
            "float v[E]; device float* p = v; p[0] = 0.0f;",
            "cannot initialize a variable of type '__global float",
        ),
        ("float v[E];", "float v[E]; auto p = (const float*)x; v[0] = p[0];", "points to no address space"),
        ("float v[E];", "float v[E]; thread float* p = part; v[0] = p[0];", "with an lvalue of type '__local float"),
        ("float v[E];", "float v[E]; x[0] = 1;", "read-only variable is not assignable"),
        ("simd_max(top)", "simd_maximum(top)", "undeclared identifier 'simd_maximum'"),
        ("0.0f;", "0.0;", "double precision constant"),
    ],
)
def test_fault_in_the_body_is_found(right: str, wrong: str, message: str) -> None:
    assert message in found(changed(sample_kernels.SOURCE, right, wrong))


def test_implicit_conversion_to_bfloat_is_found() -> None:
    assert "no viable" in found(changed(sample_kernels.SOURCE, "static_cast<T>(v[i])", "v[i]"), dtype="bfloat16")


def test_fault_in_a_variant_is_found() -> None:
    source = changed(sample_kernels.SOURCE, "static_cast<T>(v[i])", "v[i]")
    first, *variants = (sample_kernels.text(source, dtype=dtype) for dtype in ("float32", "bfloat16", "float16"))

    (finding,) = lint(first, variants)

    assert "no viable" in finding.message
    assert finding.file == variants[0].name


ROTATE = "butterfly<E>(v, lane);"
ROTATION = f"{ROTATE}\n    float top"
MAXIMUM = "top = simd_max(top);"
BARRIER = "threadgroup_barrier(mem_flags::mem_threadgroup);"


@pytest.mark.parametrize(
    ("right", "wrong", "name"),
    [
        (MAXIMUM, f"if (lane < 31) {MAXIMUM}", "simd_max"),
        (MAXIMUM, f"if (top > 0.0f) {MAXIMUM}", "simd_max"),
        (MAXIMUM, f"bool some = v[0] > 0.0f; uint n = 0; if (some) n = 1; if (n) {MAXIMUM}", "simd_max"),
        (MAXIMUM, f"for (uint i = lane; i < 4; i++) {MAXIMUM}", "simd_max"),
        (MAXIMUM, f"uint n = 9; while (n > 0) {{ if (n < lane) break; n--; {MAXIMUM} }}", "simd_max"),
        (MAXIMUM, f"for (int i = 0; i < 2; i++) {{ {MAXIMUM} if (lane == 3) continue; }}", "simd_max"),
        (MAXIMUM, "top = lane < 3 ? simd_max(top) : top;", "simd_max"),
        (MAXIMUM, "bool b = lane < 3 && simd_any(top > 0.0f); if (b) top = 0.0f;", "simd_any"),
        (MAXIMUM, f"switch (lane) {{ case 0: {MAXIMUM} }}", "simd_max"),
        (BARRIER, f"if (thread_position_in_grid.x < 100) {BARRIER}", "threadgroup_barrier"),
        (BARRIER, f"if (row >= thread_position_in_grid.x) return; {BARRIER}", "threadgroup_barrier"),
        (ROTATE, f"if (x[lane] > static_cast<T>(0)) {ROTATE}", "butterfly"),
        (ROTATE, f"if (lane == 5) return; {ROTATE}", "butterfly"),
    ],
)
def test_divergent_call_is_found(right: str, wrong: str, name: str) -> None:
    assert f"{name} under a lane-dependent condition" in found(changed(sample_kernels.SOURCE, right, wrong))


def test_condition_passed_to_a_function_is_followed() -> None:
    header = sample_kernels.HEADER + "inline float most(float v, bool now) { if (now) v = simd_max(v); return v; }\n"

    assert "simd_max under" in found(changed(sample_kernels.SOURCE, "simd_max(top)", "most(top, lane > 2)"), header)
    assert "simd_max under" not in found(changed(sample_kernels.SOURCE, "simd_max(top)", "most(top, row > 2)"), header)


PLACE = "struct Place { uint lane; uint row; };\n"
METHOD = "template <int E> struct Rows { static void run(thread float* v, uint lane) { butterfly<E>(v, lane); } };\n"


@pytest.mark.parametrize(("condition", "reported"), [("place.lane < 3", True), ("place.row < 3", False)])
def test_struct_members_are_distinguished(condition: str, reported: bool) -> None:
    wrong = f"Place place{{lane, row}}; if ({condition}) {MAXIMUM}"

    findings = found(changed(sample_kernels.SOURCE, MAXIMUM, wrong), sample_kernels.HEADER + PLACE)

    assert ("simd_max under" in findings) == reported


@pytest.mark.parametrize(("condition", "reported"), [("lane < 3", True), ("row < 3", False)])
def test_method_calls_are_followed(condition: str, reported: bool) -> None:
    findings = found(
        changed(sample_kernels.SOURCE, ROTATE, f"if ({condition}) Rows<E>::run(v, lane);"),
        sample_kernels.HEADER + METHOD,
    )

    assert ("run under" in findings) == reported


def test_only_the_metal_pragma_is_accepted() -> None:
    assert found(header="#pragma METAL fp contract(off)\n" + sample_kernels.HEADER) == ""
    assert "unknown pragma" in found(header="#pragma METAL fp contract(no)\n" + sample_kernels.HEADER)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        (MAXIMUM, f"if (row < x_shape[0]) {MAXIMUM}"),
        (MAXIMUM, f"float most = simd_max(top); if (most > 1.0f) {MAXIMUM}"),
        (MAXIMUM, f"if (simd_any(top > 1.0f)) {MAXIMUM}"),
        (MAXIMUM, f"for (int i = 0; i < E; i++) {{ if (lane == 0) v[i] += 1.0f; {MAXIMUM} }}"),
        (MAXIMUM, f"if (D > 64) {MAXIMUM}"),
        (BARRIER, f"if (threadgroup_position_in_grid.x > 3) return; {BARRIER}"),
    ],
)
def test_uniform_call_is_not_reported(right: str, wrong: str) -> None:
    assert found(changed(sample_kernels.SOURCE, right, wrong).replace("row < x_shape", "int(row) < x_shape")) == ""
