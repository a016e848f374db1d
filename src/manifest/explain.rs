//! Turns what the TOML reader says into what was meant and what to write instead.

use std::path::Path;

use serde::de::DeserializeOwned;

use super::{InputError, Outline, Place};

/// Parses TOML and, on a mistake, says where, what, and what to write instead.
pub fn parse_toml<T: DeserializeOwned>(path: &Path, text: &str) -> Result<T, InputError> {
    toml::from_str(text).map_err(|error| {
        let place = error.span().map_or_else(|| Place::file(path), |span| Place::at(path, text, span));
        let (message, hint) = explain(error.message().trim_end());
        let outline = Outline::new(path, text);
        let key = error.span().and_then(|span| outline.key_at(span.start)).filter(|_| is_about_a_value(&message));
        let message = key.map_or_else(|| message.clone(), |key| format!("`{key}`: {message}"));
        InputError { place, message, hint: Some(hint) }
    })
}

/// The closest of `known` to what was written, if any is close.
pub fn closest<'a>(unknown: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let distances = known.into_iter().map(|known| (strsim::damerau_levenshtein(known, unknown), known));
    distances.min().filter(|(distance, known)| *distance <= 1 + known.len() / 3).map(|(_, known)| known)
}

/// Advice for a name that is not among `known`.
pub fn did_you_mean<'a>(unknown: &str, known: impl IntoIterator<Item = &'a str> + Clone) -> Option<String> {
    match closest(unknown, known.clone()) {
        Some(name) => Some(format!("did you mean `{name}`?")),
        None => {
            let known: Vec<&str> = known.into_iter().collect();
            (!known.is_empty()).then(|| format!("known here: {}", known.join(", ")))
        }
    }
}

/// Unknown and missing keys name themselves, and where a text is no TOML there are no keys yet.
fn is_about_a_value(message: &str) -> bool {
    !message.starts_with("unknown key") && !message.starts_with("the key `")
}

fn explain(message: &str) -> (String, String) {
    unknown(message)
        .or_else(|| missing(message))
        .or_else(|| wrong_type(message))
        .or_else(|| with_advice_inside(message))
        .unwrap_or_else(|| (message.replace('\n', ", "), advice(message).to_owned()))
}

fn unknown(message: &str) -> Option<(String, String)> {
    let (what, rest) = if let Some(rest) = message.strip_prefix("unknown field `") {
        ("key", rest)
    } else {
        ("value", message.strip_prefix("unknown variant `")?)
    };
    let unknown = rest.split('`').next()?;
    let known = rest.split('`').skip(2).step_by(2);
    let is_key = what == "key";
    let hint = is_key
        .then(|| with_hyphens(unknown, known.clone()).or_else(|| elsewhere(unknown)))
        .flatten()
        .or_else(|| did_you_mean(unknown, known))
        .unwrap_or_else(|| "remove it".to_owned());
    Some((format!("unknown {what} `{unknown}`"), hint))
}

/// Keys are written with hyphens here.
fn with_hyphens<'a>(unknown: &str, mut known: impl Iterator<Item = &'a str>) -> Option<String> {
    let meant = unknown.replace('_', "-");
    known.find(|known| *known == meant).map(|known| format!("keys have hyphens here: write `{known}`"))
}

/// Keys that people look for in another table, or under another name, than where they are.
fn elsewhere(unknown: &str) -> Option<String> {
    const ELSEWHERE: &[(&str, &str)] = &[
        (
            "require-signature",
            "it stands in another table: [trust] require-signature = true, and keys = [\"ssh-ed25519 …\"]",
        ),
        ("require-signatures", "write [trust] require-signature = true, and keys = [\"ssh-ed25519 …\"]"),
        ("max-rate", "it stands in [sources], in [machines.NAME] and, for what is sent, in [serve]"),
        ("max-bytes", "it is called max-download, and stands in [sources]"),
        ("only-local", "leave \"upstream\" out of [sources] order"),
    ];
    let meant = unknown.replace('_', "-");
    ELSEWHERE.iter().find(|(name, _)| *name == meant).map(|(_, hint)| (*hint).to_owned())
}

fn missing(message: &str) -> Option<(String, String)> {
    let key = message.strip_prefix("missing field `")?.strip_suffix('`')?;
    if key == "stores" {
        return Some(("there is no table [stores]".to_owned(), "add it, with at least one store".to_owned()));
    }
    Some((format!("the key `{key}` is missing"), format!("add {key} = …; docs/formats.md says what it may be")))
}

/// `invalid type: integer `3`, expected a string` in words that need no knowledge of the reader.
fn wrong_type(message: &str) -> Option<(String, String)> {
    let (found, expected) = message.strip_prefix("invalid type: ")?.rsplit_once(", expected ")?;
    let is_table = matches!(found, "map" | "table");
    let (wanted, hint) = match expected {
        "a string" if is_table => ("a text", "write it in quotes: \"…\"; or look for another name of the table"),
        "a sequence" if is_table => ("a list of tables", "write its name in double brackets: [[…]]"),
        other if other.starts_with("a number of bytes") => {
            ("a size", "write bytes as a whole number, or a text such as \"25.7 GiB\"")
        }
        "a string" | "path string" | "string or table" => ("a text", "write it in quotes: \"…\""),
        "a boolean" => ("true or false", "write true or false, without quotes"),
        "a sequence" => ("a list", "write it in brackets: [\"…\"]"),
        "usize" | "u64" | "a number" => ("a whole number", "write it without quotes, for example 3"),
        other if other.starts_with("struct ") || other == "a map" => ("a table", "write it in braces: { key = \"…\" }"),
        other => (other, "docs/formats.md says what each key may be"),
    };
    let found = found.replace("floating point", "number").replace("integer", "number").replace("string", "text");
    let found = found.replace("sequence", "a list").replace("map", "a table");
    Some((format!("{wanted} is wanted here, not {found}"), hint.to_owned()))
}

/// Our own value types say what is wrong and, after `: write `, what is right.
fn with_advice_inside(message: &str) -> Option<(String, String)> {
    let (wrong, right) = message.split_once(": write ")?;
    Some((wrong.to_owned(), format!("write {right}")))
}

fn advice(message: &str) -> &'static str {
    const ADVICE: &[(&str, &str)] = &[
        (" digest: ", "copy the whole digest, for example from: sha256sum FILE"),
        ("cannot be used as a file name", "write a path below the store, such as clip/clip_l.safetensors"),
        ("size cannot be negative", "write bytes as a number, or a text such as \"25.7 GiB\""),
        ("is not a repository name", "write hf:OWNER/NAME, as in the page's address"),
        ("revision after @", "write hf:OWNER/NAME@COMMIT, or leave @… out"),
        ("Ollama name", "write ollama:MODEL:TAG, as `ollama list` prints it"),
        ("registry host", "write ollama:HOST/NAMESPACE/MODEL:TAG"),
        ("file: source needs", "begin the path with / or ~/"),
        ("would put a secret", "take the name and the password out of the address"),
        ("duplicate key", "remove one of the two"),
        ("relative URL without a base", "begin the address with http:// or https://"),
        ("must be quoted", "write it in quotes: \"…\""),
    ];
    let found = ADVICE.iter().find(|(part, _)| message.contains(part));
    found.map_or("one key = value in each line, texts in quotes, tables as [name] or [[name]]", |(_, advice)| advice)
}
