//! What smoke tests made: pictures, sounds and texts, within the page.

use crate::report::html::{escaped, time};
use crate::report::table::count;
use crate::smoke::{Check, Made, Outcome, ShownTest, Taken};

/// Bytes of a text that are shown.
const MAX_TEXT: usize = 4096;

/// The section of smoke tests.
pub(super) fn section(tests: &[ShownTest]) -> String {
    let mut out =
        "<section id=\"smoke\" aria-labelledby=\"smoke-title\">\n<h2 id=\"smoke-title\">Smoke tests</h2>\n".to_owned();
    if tests.is_empty() {
        out.push_str("<p>No smoke test is remembered. Run one with <code>larder smoke</code>.</p>\n");
    }
    tests.iter().for_each(|test| out.push_str(&of_test(test)));
    out.push_str("</section>\n");
    out
}

fn of_test(test: &ShownTest) -> String {
    let verdict = &test.smoked.verdict;
    let (class, word) = words(verdict.outcome);
    let mut out = format!(
        "<article class=\"smoked {class}\">\n<h3>{}</h3>\n<p><strong>{word}</strong> · level {} · {} · {}</p>\n",
        escaped(&verdict.artifact),
        verdict.level.name(),
        count(verdict.checks.len(), "check"),
        time(test.smoked.at),
    );
    if !verdict.taken.is_empty() {
        out.push_str(&format!("<p>with {}</p>\n", escaped(&Taken::words(&verdict.taken))));
    }
    let wrong: Vec<String> =
        verdict.checks.iter().filter(|check| check.outcome != Outcome::Passed).map(of_check).collect();
    if !wrong.is_empty() {
        out.push_str(&format!("<ul>\n{}</ul>\n", wrong.concat()));
    }
    let all: String = verdict.checks.iter().map(of_check).collect();
    out.push_str(&format!(
        "<details>\n<summary>What was measured, and what is right</summary>\n<ul>\n{all}</ul>\n</details>\n"
    ));
    test.made.iter().for_each(|made| out.push_str(&of_made(made)));
    out.push_str("</article>\n");
    out
}

/// How it looks, and what it is called.
fn words(outcome: Outcome) -> (&'static str, &'static str) {
    match outcome {
        Outcome::Passed => ("good", "passed"),
        Outcome::Failed => ("bad", "failed"),
        Outcome::EnvironmentFault => ("open", "could not run on this machine"),
        Outcome::NotPossible => ("open", "not possible"),
    }
}

fn of_check(check: &Check) -> String {
    format!(
        "<li>{}: {}: {}; right is: {} ({})</li>\n",
        escaped(&check.name),
        words(check.outcome).1,
        escaped(&check.measured),
        escaped(&check.threshold),
        escaped(&check.basis)
    )
}

fn of_made(made: &Made) -> String {
    let (title, path) = (escaped(&made.title), escaped(&made.path.display().to_string()));
    let shown = match &made.content {
        Some((kind, bytes)) if kind.starts_with("image/") => {
            format!("<img src=\"data:{kind};base64,{}\" alt=\"{title}\">\n", base64(bytes))
        }
        Some((kind, bytes)) if kind.starts_with("audio/") => {
            format!(
                "<audio controls preload=\"none\" aria-label=\"{title}\" src=\"data:{kind};base64,{}\"></audio>\n",
                base64(bytes)
            )
        }
        Some((_, bytes)) => {
            let text = String::from_utf8_lossy(&bytes[..bytes.len().min(MAX_TEXT)]).into_owned();
            format!("<blockquote>{}</blockquote>\n", escaped(&text))
        }
        None => String::new(),
    };
    format!("<figure>\n{shown}<figcaption>{title} <span class=\"path\">{path}</span></figcaption>\n</figure>\n")
}

fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for three in bytes.chunks(3) {
        let byte = |at: usize| u32::from(three.get(at).copied().unwrap_or(0));
        let number = byte(0) << 16 | byte(1) << 8 | byte(2);
        for place in 0..4 {
            let letter = char::from(LETTERS[(number >> (18 - 6 * place) & 63) as usize]);
            out.push(if place > three.len() { '=' } else { letter });
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_become_letters() {
        for (bytes, letters) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")] {
            assert_eq!(base64(bytes.as_bytes()), letters);
        }
        assert_eq!(base64(&[255, 254, 251]), "//77");
    }
}
