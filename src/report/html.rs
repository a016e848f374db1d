//! The overview as one page that needs nothing from anywhere: no scripts, no fonts; what smoke tests made is within it.

use crate::conditions::State;
use crate::report::overview::{Overview, ReportedArtifact};
use crate::report::phrases;
use crate::report::table::count;
use crate::size::Bytes;
use crate::smoke::ShownTest;

mod sizes;
mod smoke;
mod treemap;

pub use treemap::{Area, squarified};

const STYLE: &str = include_str!("html/style.css");

/// The whole page, with the smoke tests that are remembered.
pub fn page(overview: &Overview, tests: &[ShownTest]) -> String {
    let machine = escaped(&overview.machine);
    let made = phrases::moment(overview.at);
    let mut out = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:; media-src data:\">\n\
         <title>larder: {machine}, {made}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n"
    );
    out.push_str(&heading(overview));
    out.push_str("<main>\n");
    out.push_str(&faults(overview));
    out.push_str(&findings(overview));
    out.push_str(&sizes::section(overview));
    out.push_str(&artifacts(overview));
    out.push_str(&history(overview));
    out.push_str(&histories(overview));
    out.push_str(&smoke::section(tests));
    out.push_str("</main>\n");
    out.push_str(&format!("<footer><p>Made by larder {}.</p></footer>\n</body>\n</html>\n", overview.larder));
    out
}

fn heading(overview: &Overview) -> String {
    let (machine, totals) = (escaped(&overview.machine), &overview.totals);
    let profile = overview.profile.as_ref().map(|name| format!(" · profile {}", escaped(name))).unwrap_or_default();
    let class = if overview.is_in_order() { "good" } else { "bad" };
    let last = overview.runs.first();
    let oldest = totals.proven_at.map_or_else(|| "not all of it".to_owned(), phrases::moment);
    let facts = [
        ("Artifacts in order", format!("{} of {}", totals.in_order, totals.artifacts)),
        ("Here", phrases::bytes_of(totals.here_bytes, totals.wanted_bytes)),
        ("Faults", totals.faults.to_string()),
        ("Last verified", last.map_or_else(|| "never".to_owned(), |run| phrases::moment(run.at))),
        ("All read since", oldest),
    ];
    let facts: String =
        facts.iter().map(|(name, value)| format!("<div><dt>{name}</dt><dd>{}</dd></div>\n", escaped(value))).collect();
    format!(
        "<header>\n<h1>{machine}</h1>\n<p class=\"when\">{} · larder report{profile}</p>\n\
         <p class=\"verdict {class}\">{}</p>\n<dl class=\"facts\">\n{facts}</dl>\n</header>\n",
        time(overview.at),
        escaped(&phrases::summary(overview)),
    )
}

fn faults(overview: &Overview) -> String {
    let mut out =
        "<section id=\"faults\" aria-labelledby=\"faults-title\">\n<h2 id=\"faults-title\">What is wrong</h2>\n"
            .to_owned();
    if overview.totals.faults == 0 {
        out.push_str("<p>Nothing, as far as is known.</p>\n</section>\n");
        return out;
    }
    out.push_str("<ul class=\"faults\">\n");
    for fault in overview.faults() {
        let path = fault.path.as_ref().map(|path| format!("<span class=\"path\">/{}</span>", escaped(path)));
        out.push_str(&format!(
            "<li><p><a href=\"#{}\">{}</a>{}</p>\n<p><strong>{}</strong>: {}</p>",
            anchor(&fault.artifact),
            escaped(&fault.artifact),
            path.unwrap_or_default(),
            fault.kind.name(),
            escaped(&fault.detail)
        ));
        if let Some(place) = phrases::place(fault) {
            out.push_str(&format!("\n<p class=\"path\">{}</p>", escaped(&place)));
        }
        out.push_str("</li>\n");
    }
    out.push_str("</ul>\n<p>What can be done about it is shown by <code>larder plan</code>.</p>\n</section>\n");
    out
}

fn findings(overview: &Overview) -> String {
    let complaints: Vec<_> = overview.complaints().collect();
    if complaints.is_empty() {
        return String::new();
    }
    let mut out = "<section id=\"machine\" aria-labelledby=\"machine-title\">\n<h2 id=\"machine-title\">The machine</h2>\n<ul class=\"faults\">\n".to_owned();
    for finding in complaints {
        let (class, word) = if finding.state == State::Fault { ("bad", "wrong") } else { ("open", "unknown") };
        out.push_str(&format!(
            "<li class=\"{class}\"><p><strong>{word}: {}</strong></p>\n<p>{}. {}</p>",
            escaped(&finding.subject),
            escaped(&finding.what),
            escaped(&finding.why)
        ));
        if !finding.fix.is_empty() {
            out.push_str(&format!("\n<p>To do: <code>{}</code></p>", escaped(&finding.fix)));
        }
        out.push_str("</li>\n");
    }
    out.push_str("</ul>\n</section>\n");
    out
}

fn artifacts(overview: &Overview) -> String {
    let mut out =
        "<section id=\"artifacts\" aria-labelledby=\"artifacts-title\">\n<h2 id=\"artifacts-title\">Artifacts</h2>\n\
         <div class=\"wide\" role=\"region\" aria-labelledby=\"artifacts-title\" tabindex=\"0\">\n\
         <table>\n<caption>State of every artifact, those that are not in order first</caption>\n<thead><tr>\
         <th scope=\"col\">Artifact</th><th scope=\"col\" class=\"less\">Store</th>\
         <th scope=\"col\" class=\"number less\">Files</th><th scope=\"col\" class=\"number\">Here</th>\
         <th scope=\"col\">State</th><th scope=\"col\">Last seen good</th></tr></thead>\n<tbody>\n"
            .to_owned();
    for artifact in &overview.artifacts {
        out.push_str(&row(artifact, overview.at));
    }
    out.push_str("</tbody>\n</table>\n</div>\n");
    if !overview.trusted.is_empty() {
        out.push_str(&format!("<p>{}</p>\n", escaped(&phrases::trusted(overview))));
    }
    for (what, own) in phrases::strays(&overview.strays) {
        let shown = own.iter().take(phrases::STRAYS_SHOWN);
        let places: String =
            shown.map(|stray| format!("<li>{}</li>", escaped(&stray.place.display().to_string()))).collect();
        out.push_str(&format!("<p>{}</p>\n<ul>{places}</ul>\n", escaped(&what)));
    }
    out.push_str("</section>\n");
    out
}

fn row(artifact: &ReportedArtifact, now: i64) -> String {
    let status = &artifact.status;
    let only = if artifact.irreplaceable { " <span class=\"only\">irreplaceable</span>" } else { "" };
    let good = artifact.status.proven_at.or(artifact.last_good).or(artifact.part_good);
    let good = match good {
        Some(at) => {
            format!("<time datetime=\"{}\">{}</time>", phrases::machine_moment(at), phrases::last_good(artifact, now))
        }
        None => "never".to_owned(),
    };
    format!(
        "<tr class=\"{}\" id=\"{}\"><th scope=\"row\">{}{only}</th><td class=\"less\">{}</td>\
         <td class=\"number less\">{}</td><td class=\"number\">{}</td><td>{}</td><td>{good}</td></tr>\n",
        class(artifact),
        anchor(&status.artifact),
        escaped(&status.artifact),
        escaped(&status.store),
        phrases::files(status),
        phrases::bytes_of(status.here_bytes, artifact.wanted_bytes),
        state(artifact),
    )
}

/// The faults stand above, in full.
fn state(artifact: &ReportedArtifact) -> String {
    match artifact.status.faults.len() {
        0 => escaped(&phrases::state(artifact)),
        faults => format!("<a href=\"#faults\">{}</a>", count(faults, "fault")),
    }
}

fn history(overview: &Overview) -> String {
    let mut out = "<section id=\"history\" aria-labelledby=\"history-title\">\n<h2 id=\"history-title\">History</h2>\n"
        .to_owned();
    if overview.runs.is_empty() {
        out.push_str("<p>No verification is remembered. Run one with <code>larder verify</code>.</p>\n</section>\n");
        return out;
    }
    out.push_str(
        "<table>\n<caption>The last verifications</caption>\n<thead><tr><th scope=\"col\">Ended</th>\
         <th scope=\"col\">How</th><th scope=\"col\" class=\"number less\">Files</th>\
         <th scope=\"col\" class=\"number\">Read</th><th scope=\"col\" class=\"number\">Faults</th></tr></thead>\n<tbody>\n",
    );
    for run in overview.runs.iter().take(phrases::RUNS_SHOWN) {
        let class = if run.faults > 0 {
            "bad"
        } else if run.interrupted {
            "open"
        } else {
            "good"
        };
        out.push_str(&format!(
            "<tr class=\"{class}\"><th scope=\"row\">{}</th><td>{}</td><td class=\"number less\">{}</td>\
             <td class=\"number\">{}</td><td class=\"number\">{}</td></tr>\n",
            time(run.at),
            phrases::run(run),
            run.files,
            Bytes(run.bytes_read),
            run.faults
        ));
    }
    out.push_str("</tbody>\n</table>\n</section>\n");
    out
}

/// What happened to files beside being right.
fn histories(overview: &Overview) -> String {
    if overview.histories.is_empty() {
        return String::new();
    }
    let mut out =
        "<section id=\"files\" aria-labelledby=\"files-title\">\n<h2 id=\"files-title\">What happened to files</h2>\n"
            .to_owned();
    for history in overview.histories.iter().take(phrases::HISTORIES_SHOWN) {
        let place = escaped(&history.place.display().to_string());
        out.push_str(&format!("<p>{} <span class=\"path\">{place}</span></p>\n<ul>\n", escaped(&history.artifact)));
        for episode in &history.episodes {
            let (when, what) = (phrases::when(episode), escaped(&phrases::episode(episode)));
            out.push_str(&format!("<li>{when}: {what}</li>\n"));
        }
        out.push_str("</ul>\n");
    }
    out.push_str("</section>\n");
    out
}

fn time(at: i64) -> String {
    format!("<time datetime=\"{}\">{}</time>", phrases::machine_moment(at), phrases::moment(at))
}

/// How an artifact is coloured: in order and read, not in order, or not known.
fn class(artifact: &ReportedArtifact) -> &'static str {
    match (artifact.is_in_order(), artifact.status.proven_at) {
        (false, _) => "bad",
        (true, Some(_)) => "good",
        (true, None) => "open",
    }
}

/// A place on the page to link to, made of an artifact's name.
fn anchor(artifact: &str) -> String {
    let mut out = "artifact-".to_owned();
    for byte in artifact.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => out.push(char::from(byte)),
            byte => out.push_str(&format!(".{byte:02x}")),
        }
    }
    out
}

/// Text that means nothing to HTML, in elements and in attributes.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}
