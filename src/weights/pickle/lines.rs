//! Values of protocol 0, which are lines of text.

use super::Value;

/// A number in decimal digits, of protocol 0.
pub(super) fn decimal(line: &str) -> Value {
    line.trim().trim_end_matches('L').parse().map_or(Value::Other, Value::Int)
}

/// A line in which characters may be written as `\u0041` or `\U00000041`.
pub(super) fn unescaped(line: &str) -> Value {
    let mut text = String::new();
    let mut rest = line;
    while let Some(at) = rest.find('\\') {
        text.push_str(&rest[..at]);
        let digits = match rest.as_bytes().get(at + 1) {
            Some(b'u') => 4,
            Some(b'U') => 8,
            _ => {
                text.push('\\');
                rest = &rest[at + 1..];
                continue;
            }
        };
        let code = rest.get(at + 2..at + 2 + digits).and_then(|code| u32::from_str_radix(code, 16).ok());
        let Some(char) = code.and_then(char::from_u32) else { return Value::Other };
        text.push(char);
        rest = &rest[at + 2 + digits..];
    }
    Value::Text(text + rest)
}

/// A text in Python's quotes; one with escapes is not read, and a name it would be is then a computed one.
pub(super) fn quoted(line: &str) -> Value {
    let line = line.trim();
    let inner = ['"', '\''].iter().find_map(|quote| line.strip_prefix(*quote)?.strip_suffix(*quote));
    match inner {
        Some(inner) if !inner.contains('\\') && inner.is_ascii() => Value::Text(inner.to_owned()),
        _ => Value::Other,
    }
}
