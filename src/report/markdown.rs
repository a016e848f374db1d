//! The overview as Markdown, for a ticket or a wiki.

use crate::report::overview::{Overview, ReportedArtifact};
use crate::report::phrases;
use crate::size::Bytes;

/// Faults first, then a row per artifact, then the last runs.
pub fn text(overview: &Overview) -> String {
    let mut out = format!("# larder: {}\n\n{}\n", inline(&overview.machine), phrases::summary(overview));
    if overview.totals.faults > 0 {
        out.push_str("\n## What is wrong\n\n");
        for fault in overview.faults() {
            let path = fault.path.as_ref().map(|path| format!("/{path}")).unwrap_or_default();
            let name = format!("{}{path}", fault.artifact);
            let place = phrases::place(fault).map(|place| format!(" ({})", inline(&place))).unwrap_or_default();
            let kind = fault.kind.name();
            out.push_str(&format!("- **{}**: {kind}: {}{place}\n", inline(&name), inline(&fault.detail)));
        }
    }
    let complaints: Vec<_> = overview.complaints().collect();
    if !complaints.is_empty() {
        out.push_str("\n## The machine\n\n");
        for finding in complaints {
            out.push_str(&format!("- **{}**: {}", inline(&finding.subject), inline(&finding.what)));
            out.push_str(&if finding.fix.is_empty() {
                "\n".to_owned()
            } else {
                format!(". To do: {}\n", inline(&finding.fix))
            });
        }
    }
    out.push_str(
        "\n## Artifacts\n\n| artifact | store | files | here | state | last seen good |\n|---|---|--:|--:|---|---|\n",
    );
    overview.artifacts.iter().for_each(|artifact| out.push_str(&row(artifact, overview.at)));
    if !overview.trusted.is_empty() {
        out.push_str(&format!("\n{}\n", inline(&phrases::trusted(overview))));
    }
    for (what, own) in phrases::strays(&overview.strays) {
        out.push_str(&format!("\n{}\n\n", inline(&what)));
        for stray in own.iter().take(phrases::STRAYS_SHOWN) {
            out.push_str(&format!("- {}\n", inline(&stray.place.display().to_string())));
        }
    }
    if !overview.runs.is_empty() {
        out.push_str("\n## Last runs\n\n| when | what | files | read | faults |\n|---|---|--:|--:|--:|\n");
        for run in overview.runs.iter().take(phrases::RUNS_SHOWN) {
            let (when, what) = (phrases::moment(run.at), phrases::run(run));
            out.push_str(&format!(
                "| {when} | {what} | {} | {} | {} |\n",
                run.files,
                Bytes(run.bytes_read),
                run.faults
            ));
        }
    }
    out.push_str(&histories(overview));
    out
}

fn histories(overview: &Overview) -> String {
    if overview.histories.is_empty() {
        return String::new();
    }
    let mut out = "\n## What happened to files\n".to_owned();
    for history in overview.histories.iter().take(phrases::HISTORIES_SHOWN) {
        out.push_str(&format!(
            "\n**{}** {}\n\n",
            inline(&history.artifact),
            inline(&history.place.display().to_string())
        ));
        for episode in &history.episodes {
            out.push_str(&format!("- {}: {}\n", phrases::when(episode), inline(&phrases::episode(episode))));
        }
    }
    out
}

fn row(artifact: &ReportedArtifact, now: i64) -> String {
    let status = &artifact.status;
    format!(
        "| {} | {} | {} | {} | {} | {} |\n",
        inline(&status.artifact),
        inline(&status.store),
        phrases::files(status),
        Bytes(status.here_bytes),
        inline(&phrases::state(artifact)),
        phrases::last_good(artifact, now),
    )
}

/// Text that stays one cell of a table and one line, and means nothing to Markdown or HTML.
fn inline(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\r' | '\t' => out.push(' '),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '\\' | '|' | '*' | '_' | '`' | '[' | ']' | '#' | '~' => {
                out.push('\\');
                out.push(c);
            }
            c => out.push(c),
        }
    }
    out
}
