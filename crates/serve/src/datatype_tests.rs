//! Tests of element types: every type through bytes and JSON, and what is refused.

use super::*;

fn json(text: &str, datatype: Datatype, shape: &[usize]) -> Result<Tensor, ApiError> {
    let numbers: Numbers = serde_json::from_str(text).map_err(|e| ApiError::bad(e.to_string()))?;
    numbers.tensor("x", datatype, shape)
}

#[test]
fn every_type_reads_the_same_array_from_json_and_from_bytes() {
    let rows: [(Datatype, &str, Vec<u8>); 13] = [
        (Datatype::Bool, "[[true],[false]]", vec![1, 0]),
        (Datatype::Uint8, "[0, 255]", vec![0, 255]),
        (Datatype::Int8, "[-128, 127]", vec![128, 127]),
        (Datatype::Uint16, "[1, 65535]", vec![1, 0, 255, 255]),
        (Datatype::Int16, "[-2, 32767]", vec![254, 255, 255, 127]),
        (Datatype::Uint32, "[1, 4294967295]", vec![1, 0, 0, 0, 255, 255, 255, 255]),
        (Datatype::Int32, "[-2, 3]", vec![254, 255, 255, 255, 3, 0, 0, 0]),
        (
            Datatype::Int64,
            "[[-1, 9007199254740993]]",
            [(-1i64).to_le_bytes(), 9_007_199_254_740_993i64.to_le_bytes()].concat(),
        ),
        (Datatype::Uint64, "[5, 6]", [5u64.to_le_bytes(), 6u64.to_le_bytes()].concat()),
        (
            Datatype::Fp16,
            "[1.5, -2]",
            [f16::from_f32(1.5).to_le_bytes(), f16::from_f32(-2.0).to_le_bytes()].concat(),
        ),
        (
            Datatype::Bf16,
            "[1.5, -2]",
            [bf16::from_f32(1.5).to_le_bytes(), bf16::from_f32(-2.0).to_le_bytes()].concat(),
        ),
        (Datatype::Fp32, "[0.1, 7]", [0.1f32.to_le_bytes(), 7f32.to_le_bytes()].concat()),
        (Datatype::Fp64, "[[0.1], [1e300]]", [0.1f64.to_le_bytes(), 1e300f64.to_le_bytes()].concat()),
    ];
    for (datatype, text, bytes) in rows {
        let from_json = json(text, datatype, &[2]).unwrap();
        let from_bytes = from_bytes("x", datatype, &[2], &bytes).unwrap();
        assert_eq!(from_json, from_bytes, "{datatype:?}");
        assert_eq!(Datatype::named(datatype.name()), Some(datatype));
        // Types that the library has go out as they came in.
        if Datatype::of_library(from_bytes.dtype()) == Some(datatype) {
            let mut written = Vec::new();
            write_bytes(&from_bytes, &mut written);
            assert_eq!(written, bytes, "{datatype:?}");
            let text = serde_json::to_string(&Flat(&from_bytes)).unwrap();
            assert_eq!(json(&text, datatype, &[2]).unwrap(), from_bytes, "{text}");
        }
    }
}

#[test]
fn outputs_of_16_bits_are_written_in_their_type() {
    let half = [f16::from_f32(1.5), f16::from_f32(-0.25)];
    let tensor = Tensor::from(ArrayD::from_shape_vec(vec![2], half.to_vec()).unwrap());
    let mut written = Vec::new();
    write_bytes(&tensor, &mut written);
    assert_eq!(written, half.map(f16::to_le_bytes).concat());
    assert_eq!(Datatype::of_library(tensor.dtype()), Some(Datatype::Fp16));
    assert_eq!(serde_json::to_string(&Flat(&tensor)).unwrap(), "[1.5,-0.25]");
    let brain = Tensor::from(ArrayD::from_shape_vec(vec![1], vec![bf16::from_f32(3.0)]).unwrap());
    assert_eq!(Datatype::of_library(brain.dtype()), Some(Datatype::Bf16));
    let part = tensor.part(0, 1..2).unwrap();
    assert_eq!(serde_json::to_string(&Flat(&part)).unwrap(), "[-0.25]");
}

#[test]
fn what_does_not_fit_is_refused_with_both_sides() {
    let rows = [
        ("[256]", Datatype::Uint8, vec![1], "256, which is outside UINT8"),
        ("[-1]", Datatype::Uint16, vec![1], "outside UINT16"),
        ("[0.5]", Datatype::Int32, vec![1], "fractions where INT32"),
        ("[true]", Datatype::Fp32, vec![1], "booleans where FP32"),
        ("[2]", Datatype::Bool, vec![1], "numbers where BOOL"),
        ("[1, true]", Datatype::Int32, vec![2], "different kinds"),
        ("[1, 2, 3]", Datatype::Int32, vec![2], "3 elements where its shape [2] needs 2"),
        ("[]", Datatype::Int32, vec![0], "at least 1"),
        ("[1]", Datatype::Int32, vec![usize::MAX, 2], "no machine"),
        ("[\"a\"]", Datatype::Int32, vec![1], "strings where INT32"),
        ("[\"a\", 1]", Datatype::Int32, vec![2], "different kinds"),
        ("[null]", Datatype::Fp32, vec![1], "numbers, booleans or strings"),
        ("[18446744073709551615]", Datatype::Uint64, vec![1], "fractions where UINT64"),
    ];
    for (text, datatype, shape, part) in rows {
        let error = json(text, datatype, &shape).unwrap_err();
        assert!(error.status == 400 && error.message.contains(part), "{text}: {}", error.message);
    }
    let deep = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
    assert!(json(&deep, Datatype::Int32, &[1]).unwrap_err().message.contains("recursion limit"));
    let short = from_bytes("x", Datatype::Fp32, &[2], &[0; 7]).unwrap_err().message;
    assert!(short.contains("7 bytes where 8"), "{short}");
    assert!(from_bytes("x", Datatype::Bool, &[1], &[2]).unwrap_err().message.contains("BOOL of 2"));
    assert!(from_bytes("x", Datatype::Uint64, &[1], &[255; 8]).is_err());
}

#[test]
fn parts_along_any_axis() {
    let whole = Tensor::from(ArrayD::from_shape_vec(vec![2, 3], vec![0i64, 1, 2, 3, 4, 5]).unwrap());
    let column = whole.part(1, 1..3).unwrap();
    assert_eq!(column, ArrayD::from_shape_vec(vec![2, 2], vec![1i64, 2, 4, 5]).unwrap().into());
    assert_eq!(whole.part(0, 1..3), None);
    assert_eq!(whole.part(2, 0..1), None);
}
