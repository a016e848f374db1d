//! The element types of GGUF, and how many bytes a block of each takes.

struct Type {
    number: u32,
    /// ggml's name.
    name: &'static str,
    /// Elements of one block.
    elements: u64,
    /// Bytes of one block.
    bytes: u64,
}

#[rustfmt::skip]
const TYPES: [Type; 34] = [
    Type { number: 0, name: "F32", elements: 1, bytes: 4 },
    Type { number: 1, name: "F16", elements: 1, bytes: 2 },
    Type { number: 2, name: "Q4_0", elements: 32, bytes: 18 },
    Type { number: 3, name: "Q4_1", elements: 32, bytes: 20 },
    Type { number: 6, name: "Q5_0", elements: 32, bytes: 22 },
    Type { number: 7, name: "Q5_1", elements: 32, bytes: 24 },
    Type { number: 8, name: "Q8_0", elements: 32, bytes: 34 },
    Type { number: 9, name: "Q8_1", elements: 32, bytes: 36 },
    Type { number: 10, name: "Q2_K", elements: 256, bytes: 84 },
    Type { number: 11, name: "Q3_K", elements: 256, bytes: 110 },
    Type { number: 12, name: "Q4_K", elements: 256, bytes: 144 },
    Type { number: 13, name: "Q5_K", elements: 256, bytes: 176 },
    Type { number: 14, name: "Q6_K", elements: 256, bytes: 210 },
    Type { number: 15, name: "Q8_K", elements: 256, bytes: 292 },
    Type { number: 16, name: "IQ2_XXS", elements: 256, bytes: 66 },
    Type { number: 17, name: "IQ2_XS", elements: 256, bytes: 74 },
    Type { number: 18, name: "IQ3_XXS", elements: 256, bytes: 98 },
    Type { number: 19, name: "IQ1_S", elements: 256, bytes: 50 },
    Type { number: 20, name: "IQ4_NL", elements: 32, bytes: 18 },
    Type { number: 21, name: "IQ3_S", elements: 256, bytes: 110 },
    Type { number: 22, name: "IQ2_S", elements: 256, bytes: 82 },
    Type { number: 23, name: "IQ4_XS", elements: 256, bytes: 136 },
    Type { number: 24, name: "I8", elements: 1, bytes: 1 },
    Type { number: 25, name: "I16", elements: 1, bytes: 2 },
    Type { number: 26, name: "I32", elements: 1, bytes: 4 },
    Type { number: 27, name: "I64", elements: 1, bytes: 8 },
    Type { number: 28, name: "F64", elements: 1, bytes: 8 },
    Type { number: 29, name: "IQ1_M", elements: 256, bytes: 56 },
    Type { number: 30, name: "BF16", elements: 1, bytes: 2 },
    Type { number: 34, name: "TQ1_0", elements: 256, bytes: 54 },
    Type { number: 35, name: "TQ2_0", elements: 256, bytes: 66 },
    Type { number: 39, name: "MXFP4", elements: 32, bytes: 17 },
    Type { number: 40, name: "NVFP4", elements: 64, bytes: 36 },
    Type { number: 41, name: "Q1_0", elements: 128, bytes: 18 },
];

fn of(number: u32) -> Option<&'static Type> {
    TYPES.iter().find(|known| known.number == number)
}

/// Elements of one block and its bytes; `None` for a type that larder does not know.
pub fn block_of(kind: u32) -> Option<(u64, u64)> {
    of(kind).map(|known| (known.elements, known.bytes))
}

/// ggml's name of an element type; its number for one that larder does not know.
pub fn type_name(kind: u32) -> String {
    of(kind).map_or_else(|| format!("type {kind}"), |known| known.name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Scales, smaller scales, high bits and low bits, as ggml's structures have them one after the other.
    #[rustfmt::skip]
    const FIELDS: [(&str, u64, &[u64]); 24] = [
        ("Q4_0", 32, &[2, 16]), ("Q4_1", 32, &[2, 2, 16]), ("Q5_0", 32, &[2, 4, 16]), ("Q5_1", 32, &[2, 2, 4, 16]),
        ("Q8_0", 32, &[2, 32]), ("Q8_1", 32, &[2, 2, 32]), ("IQ4_NL", 32, &[2, 16]), ("MXFP4", 32, &[1, 16]),
        ("NVFP4", 64, &[4, 32]), ("Q1_0", 128, &[2, 16]), ("Q2_K", 256, &[16, 64, 2, 2]),
        ("Q3_K", 256, &[32, 64, 12, 2]), ("Q4_K", 256, &[2, 2, 12, 128]), ("Q5_K", 256, &[2, 2, 12, 32, 128]),
        ("Q6_K", 256, &[128, 64, 16, 2]), ("Q8_K", 256, &[4, 256, 32]), ("IQ2_XXS", 256, &[2, 64]),
        ("IQ2_XS", 256, &[2, 64, 8]), ("IQ3_XXS", 256, &[2, 96]), ("IQ3_S", 256, &[2, 64, 8, 32, 4]),
        ("IQ4_XS", 256, &[2, 2, 4, 128]), ("IQ1_S", 256, &[2, 32, 16]), ("IQ1_M", 256, &[32, 16, 8]),
        ("TQ1_0", 256, &[48, 4, 2]),
    ];

    #[test]
    fn blocks_are_as_long_as_their_fields() {
        for (name, elements, fields) in FIELDS {
            let known = TYPES.iter().find(|known| known.name == name).unwrap();
            assert_eq!((known.elements, known.bytes), (elements, fields.iter().sum()), "{name}");
        }
    }

    #[test]
    fn numbers_and_names_are_told_once() {
        assert!(TYPES.is_sorted_by(|a, b| a.number < b.number));
        assert_eq!((type_name(12).as_str(), type_name(4).as_str(), block_of(4)), ("Q4_K", "type 4", None));
    }
}
