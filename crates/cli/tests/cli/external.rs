//! An ONNX model of one convolution with its filters in a separate file, byte by byte.

/// Filters of the model: `[2, 1, 3, 3]`.
pub(crate) const FILTERS: usize = 18;

fn varint(mut value: u64, bytes: &mut Vec<u8>) {
    loop {
        let low = (value & 0x7f) as u8;
        value >>= 7;
        bytes.push(if value == 0 { low } else { low | 0x80 });
        if value == 0 {
            return;
        }
    }
}

fn number(field: u64, value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    varint(field << 3, &mut bytes);
    varint(value, &mut bytes);
    bytes
}

fn nested(field: u64, parts: &[Vec<u8>]) -> Vec<u8> {
    let content = parts.concat();
    let mut bytes = Vec::new();
    varint(field << 3 | 2, &mut bytes);
    varint(content.len() as u64, &mut bytes);
    bytes.extend(content);
    bytes
}

fn text(field: u64, value: &str) -> Vec<u8> {
    nested(field, &[value.as_bytes().to_vec()])
}

fn value(field: u64, name: &str, shape: &[u64]) -> Vec<u8> {
    let sizes: Vec<Vec<u8>> = shape.iter().map(|size| nested(1, &[number(1, *size)])).collect();
    let tensor = nested(1, &[number(1, 1), nested(2, &sizes)]);
    nested(field, &[text(1, name), nested(2, &[tensor])])
}

/// The model: `x [1, 1, 6, 6]` convolved with filters at `location`, from `offset` on.
pub(crate) fn model(location: &str, offset: u64) -> Vec<u8> {
    let entry = |key: &str, value: &str| nested(13, &[text(1, key), text(2, value)]);
    let sizes: Vec<Vec<u8>> = [2, 1, 3, 3].iter().map(|size| number(1, *size)).collect();
    let filters = nested(
        5,
        &[
            sizes.concat(),
            number(2, 1),
            text(8, "w"),
            entry("location", location),
            entry("offset", &offset.to_string()),
            entry("length", &(4 * FILTERS).to_string()),
            number(14, 1),
        ],
    );
    let conv = nested(1, &[text(1, "x"), text(1, "w"), text(2, "y"), text(3, "conv"), text(4, "Conv")]);
    let graph = [conv, text(2, "g"), filters, value(11, "x", &[1, 1, 6, 6]), value(12, "y", &[1, 2, 4, 4])];
    [number(1, 8), nested(7, &graph), nested(8, &[text(1, ""), number(2, 17)])].concat()
}

/// The content of the file of filters, after `offset` other bytes.
pub(crate) fn data(offset: usize, filters: &[f32]) -> Vec<u8> {
    assert_eq!(filters.len(), FILTERS);
    let mut bytes = vec![0xee; offset];
    bytes.extend(filters.iter().flat_map(|value| value.to_le_bytes()));
    bytes
}
