//! What a pickle of weights may import.

/// The storages of torch, by the beginning of their names.
const STORAGES: [&str; 22] = [
    "Float",
    "Double",
    "Half",
    "BFloat16",
    "Long",
    "Int",
    "Short",
    "Char",
    "Byte",
    "Bool",
    "ComplexFloat",
    "ComplexDouble",
    "Untyped",
    "Typed",
    "QInt8",
    "QInt32",
    "QUInt8",
    "QUInt4x2",
    "QUInt2x4",
    "Float8_e4m3fn",
    "Float8_e5m2",
    "UInt16",
];

/// Element types of torch, which pickles import by name.
const DTYPES: [&str; 28] = [
    "float32",
    "float64",
    "float16",
    "bfloat16",
    "float",
    "double",
    "half",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "bool",
    "complex32",
    "complex64",
    "complex128",
    "float8_e4m3fn",
    "float8_e5m2",
    "float8_e4m3fnuz",
    "float8_e5m2fnuz",
    "float8_e8m0fnu",
    "float4_e2m1fn_x2",
    "qint8",
    "quint8",
    "qint32",
];

/// What makes a tensor out of its storage.
const REBUILDERS: [&str; 11] = [
    "_rebuild_tensor",
    "_rebuild_tensor_v2",
    "_rebuild_tensor_v3",
    "_rebuild_parameter",
    "_rebuild_parameter_with_state",
    "_rebuild_sparse_tensor",
    "_rebuild_qtensor",
    "_rebuild_nested_tensor",
    "_rebuild_meta_tensor_no_storage",
    "_rebuild_device_tensor_from_numpy",
    "_rebuild_device_tensor_from_cpu_tensor",
];

const BUILTINS: [&str; 12] =
    ["set", "frozenset", "bytearray", "bytes", "complex", "int", "float", "bool", "str", "list", "dict", "tuple"];

/// Whether a pickle may import `name` from `module`: everything that builds tensors, arrays and plain
/// containers, and nothing else.
///
/// None of these runs code that the pickle brings, whatever the arguments. `torch.storage._load_from_bytes`
/// is not among them: its argument is a pickle of its own.
pub fn is_allowed(module: &str, name: &str) -> bool {
    match module {
        "collections" => ["OrderedDict", "Counter", "defaultdict"].contains(&name),
        "builtins" | "__builtin__" => BUILTINS.contains(&name),
        "_codecs" => name == "encode",
        "torch" => is_of_torch(name),
        "torch.storage" | "torch.cuda" => is_storage(name),
        "torch._utils" => REBUILDERS.contains(&name),
        "torch._tensor" => name == "_rebuild_from_type_v2",
        "torch.nn.parameter" => ["Parameter", "Buffer"].contains(&name),
        "torch.nn" => name == "Parameter",
        "torch.serialization" => name == "_get_layout",
        "torch.torch_version" => name == "TorchVersion",
        "numpy" => ["ndarray", "dtype"].contains(&name) || is_number_of_numpy(name),
        "numpy.dtypes" => name.strip_suffix("DType").is_some_and(|kind| kind != "Object" && is_plain(kind)),
        "numpy.core.multiarray" | "numpy._core.multiarray" => ["_reconstruct", "scalar"].contains(&name),
        "numpy.core.numeric" | "numpy._core.numeric" => name == "_frombuffer",
        _ => false,
    }
}

fn is_of_torch(name: &str) -> bool {
    ["Size", "device", "Tensor"].contains(&name) || DTYPES.contains(&name) || is_storage(name)
}

fn is_storage(name: &str) -> bool {
    name.strip_suffix("Storage").is_some_and(|kind| STORAGES.contains(&kind))
}

fn is_plain(name: &str) -> bool {
    !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric())
}

fn is_number_of_numpy(name: &str) -> bool {
    let kind = name.trim_end_matches(|c: char| c.is_ascii_digit());
    ["float", "int", "uint", "complex", "bool", "bool_", "longlong", "intc"].contains(&kind)
}

#[cfg(test)]
mod tests {
    use super::is_allowed;

    #[test]
    fn what_builds_tensors_is_allowed_and_its_neighbours_are_not() {
        for (module, name) in [
            ("torch._utils", "_rebuild_tensor_v2"),
            ("torch", "BFloat16Storage"),
            ("torch", "float8_e4m3fn"),
            ("collections", "OrderedDict"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy.dtypes", "Float32DType"),
            ("numpy", "float64"),
        ] {
            assert!(is_allowed(module, name), "{module} {name}");
        }
        for (module, name) in [
            ("torch.storage", "_load_from_bytes"),
            ("torch", "load"),
            ("torch", "Storage"),
            ("torch", "_utils._rebuild_tensor_v2"),
            ("torch._utils", "os.system"),
            ("torch.hub", "load"),
            ("collections", "OrderedDict.__init__.__globals__"),
            ("builtins", "getattr"),
            ("builtins", "eval"),
            ("__builtin__", "exec"),
            ("os", "system"),
            ("numpy", "load"),
            ("numpy.dtypes", "ObjectDType"),
            ("numpy.testing._private.utils", "runstring"),
            ("", ""),
        ] {
            assert!(!is_allowed(module, name), "{module} {name}");
        }
    }
}
