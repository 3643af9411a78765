//! Estimates how much memory the message of a model file takes once it is decoded, before it is decoded.
//!
//! Relevant if you want to know why a small file is refused for lack of memory. An entry of two bytes in a file can become
//! a structure of hundreds of bytes in memory, so a file of some megabytes could otherwise take all memory of a machine.
//!
//! Invariant: nothing is allocated. The time is proportional to the length of the file without its tensors. Bytes that
//! are no message end the estimate early; decoding them gives the error.

use std::mem::size_of;

use tract_onnx::pb::{
    AttributeProto, FunctionProto, GraphProto, NodeProto, SparseTensorProto, StringStringEntryProto,
    TensorProto, TypeProto, ValueInfoProto,
};

/// Maximum depth of messages in messages, as of the decoder.
const MOST_DEPTH: usize = 100;
/// A vector that grows has room for twice its entries.
const GROWTH: u64 = 2;
/// Bytes that a node takes besides its structure: a copy while the graph is rewritten, its names in tables, and the node
/// of the graph that is made from it. An estimate on the low side.
const NODE_BYTES: usize = 1024;

/// Messages whose fields are known here.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Model,
    Graph,
    Node,
    Attribute,
    Tensor,
    Sparse,
    Value,
    Function,
    Training,
    /// A pair of texts.
    Entry,
    /// Types and sizes of values.
    Type,
}

/// The content of a field of bytes.
enum Content {
    Message(Kind),
    /// Integers of variable length; each byte may become one of this many bytes.
    Integers(u64),
    /// A text or numbers of fixed length.
    Bytes,
}

impl Kind {
    /// Bytes of the structure, without what it points to.
    fn bytes(self) -> u64 {
        let bytes = match self {
            Self::Model | Self::Training => size_of::<GraphProto>() * 2,
            Self::Graph => size_of::<GraphProto>(),
            Self::Node => size_of::<NodeProto>() + NODE_BYTES / 2,
            Self::Attribute => size_of::<AttributeProto>(),
            Self::Tensor => size_of::<TensorProto>(),
            Self::Sparse => size_of::<SparseTensorProto>(),
            Self::Value => size_of::<ValueInfoProto>(),
            Self::Function => size_of::<FunctionProto>(),
            Self::Entry => size_of::<StringStringEntryProto>(),
            Self::Type => size_of::<TypeProto>(),
        };
        bytes as u64
    }

    /// The content of a field, by its number in the format.
    fn content(self, field: u64) -> Content {
        use Content::{Bytes, Integers, Message};
        match (self, field) {
            (Self::Model, 7) | (Self::Training, 1 | 2) | (Self::Attribute, 6 | 11) => Message(Self::Graph),
            (Self::Model, 8 | 14)
            | (Self::Training, 3 | 4)
            | (Self::Tensor, 13)
            | (Self::Function, 9)
            | (Self::Graph, 14) => Message(Self::Entry),
            (Self::Model, 20) => Message(Self::Training),
            (Self::Model, 25) => Message(Self::Function),
            (Self::Graph, 1) | (Self::Function, 7) => Message(Self::Node),
            (Self::Graph, 5) | (Self::Attribute, 5 | 10) | (Self::Sparse, 1 | 2) => Message(Self::Tensor),
            (Self::Graph, 11..=13) => Message(Self::Value),
            (Self::Graph, 15) | (Self::Attribute, 22 | 23) => Message(Self::Sparse),
            (Self::Node, 5) => Message(Self::Attribute),
            (Self::Value, 2) | (Self::Attribute, 14 | 15) | (Self::Type, _) => Message(Self::Type),
            (Self::Attribute, 8) | (Self::Tensor, 1 | 7 | 11) | (Self::Sparse, 3) => Integers(8),
            (Self::Tensor, 5) => Integers(4),
            _ => Bytes,
        }
    }
}

/// Bytes that the structures of a model's message take at most, beyond the length of the message itself.
pub(super) fn decoded_bytes(message: &[u8]) -> u64 {
    // A message that ends early is damaged, and decoding says so.
    walk(message, Kind::Model, 0).unwrap_or_else(|bytes| bytes)
}

/// The bytes of the structures of one message; `Err` with those up to a damaged place.
fn walk(mut rest: &[u8], kind: Kind, depth: usize) -> Result<u64, u64> {
    let mut bytes = 0u64;
    while !rest.is_empty() {
        let tag = varint(&mut rest).ok_or(bytes)?;
        match tag & 7 {
            0 => {
                varint(&mut rest).ok_or(bytes)?;
                // One of a list that is not packed.
                if let Content::Integers(size) = kind.content(tag >> 3) {
                    bytes = bytes.saturating_add(size * GROWTH);
                }
            }
            1 => skip(&mut rest, 8).map(drop).ok_or(bytes)?,
            5 => skip(&mut rest, 4).map(drop).ok_or(bytes)?,
            2 => {
                let length = varint(&mut rest).ok_or(bytes)?;
                let part = skip(&mut rest, length).ok_or(bytes)?;
                let own = match kind.content(tag >> 3) {
                    Content::Message(kind) if depth < MOST_DEPTH => {
                        let inner = walk(part, kind, depth + 1);
                        let whole = kind.bytes().saturating_mul(GROWTH);
                        inner.map_err(|inner| bytes.saturating_add(whole).saturating_add(inner))? + whole
                    }
                    Content::Message(_) => return Err(bytes),
                    Content::Integers(size) => length.saturating_mul(size * GROWTH),
                    Content::Bytes => size_of::<String>() as u64 * GROWTH,
                };
                bytes = bytes.saturating_add(own);
            }
            _ => return Err(bytes),
        }
    }
    Ok(bytes)
}

/// The next integer of variable length.
fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for at in 0..10 {
        let byte = *rest.get(at)?;
        value |= u64::from(byte & 127) << (7 * at).min(63);
        if byte < 128 {
            *rest = &rest[at + 1..];
            return Some(value);
        }
    }
    None
}

/// The next `length` bytes.
fn skip<'a>(rest: &mut &'a [u8], length: u64) -> Option<&'a [u8]> {
    let (part, after) = rest.split_at_checked(usize::try_from(length).ok()?)?;
    *rest = after;
    Some(part)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
mod tests {
    use super::*;

    /// A field of bytes shorter than 128.
    fn field(number: u8, content: &[u8]) -> Vec<u8> {
        [&[number << 3 | 2, u8::try_from(content.len()).unwrap()][..], content].concat()
    }

    /// A field of bytes of any length.
    fn long(number: u8, content: &[u8]) -> Vec<u8> {
        let mut bytes = vec![number << 3 | 2];
        let mut rest = content.len();
        while rest >= 128 {
            bytes.push(rest.to_le_bytes()[0] | 128);
            rest >>= 7;
        }
        bytes.push(rest.to_le_bytes()[0]);
        [bytes, content.to_vec()].concat()
    }

    #[test]
    fn empty_entries_count_as_the_structures_they_become() {
        let nodes = field(1, &[]).repeat(1_000_000);
        let bytes = decoded_bytes(&long(7, &nodes));
        let structures = 1_000_000 * (size_of::<NodeProto>() + NODE_BYTES) as u64;
        assert!((structures..2 * structures).contains(&bytes), "{bytes} where {structures}");
        // A million sizes of one byte each.
        let tensor = long(5, &long(1, &vec![1; 1_000_000]));
        assert!(decoded_bytes(&long(7, &tensor)) >= 8_000_000);
    }

    #[test]
    fn tensors_and_damaged_bytes_cost_nothing() {
        // `raw_data` is kept as it is.
        let raw = long(7, &long(5, &long(9, &vec![8; 1_000_000])));
        assert!(decoded_bytes(&raw) < 10_000);
        let nodes = long(7, &field(1, &[]).repeat(100));
        for end in 0..nodes.len() {
            assert!(decoded_bytes(&nodes[..end]) <= decoded_bytes(&nodes), "{end}");
        }
        assert_eq!(decoded_bytes(&[0xff; 100]), 0);
        // A graph in an attribute in a node in a graph, and so on.
        let deep = (0..1000).fold(Vec::new(), |inner, _| long(1, &long(5, &long(6, &inner))));
        assert!(decoded_bytes(&long(7, &deep)) < 1_000_000);
    }

    #[test]
    fn real_models_cost_little() {
        let model = std::fs::read("assets/digits/lenet5.onnx").unwrap();
        assert!(decoded_bytes(&model) < 100_000);
    }
}
