//! The overview as metrics, for the textfile collector of Prometheus' node exporter.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::conditions::State;
use crate::facts::Depth;
use crate::report::overview::{Overview, ReportedArtifact};
use crate::verify::{Stray, StrayKind};

/// One metric with its samples: labels and value.
struct Metric {
    name: &'static str,
    help: &'static str,
    samples: BTreeMap<Vec<(&'static str, String)>, f64>,
}

fn strays(name: &'static str, help: &'static str, overview: &Overview, of: fn(&Stray) -> u64) -> Metric {
    let kinds = [(StrayKind::Foreign, "foreign"), (StrayKind::Leftover, "leftover")];
    let sum = |kind| overview.strays.iter().filter(|stray| stray.kind == kind).map(of).sum::<u64>() as f64;
    let samples = kinds.into_iter().map(|(kind, name)| (vec![("kind", name.to_owned())], sum(kind))).collect();
    Metric { name, help, samples }
}

/// What a metric says of one artifact, if anything.
type OfArtifact = fn(&ReportedArtifact) -> Option<f64>;

/// The exposition text. Every metric has help and type, no series comes twice, values are escaped.
pub fn text(overview: &Overview) -> String {
    let mut out = String::new();
    for metric in metrics(overview) {
        if metric.samples.is_empty() {
            continue;
        }
        let name = metric.name;
        let _ = writeln!(out, "# HELP {name} {}\n# TYPE {name} gauge", metric.help);
        for (labels, value) in &metric.samples {
            let labels: Vec<String> =
                labels.iter().map(|(label, value)| format!("{label}=\"{}\"", escaped(value))).collect();
            let braces = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
            let _ = writeln!(out, "{name}{braces} {value}");
        }
    }
    out
}

fn metrics(overview: &Overview) -> Vec<Metric> {
    let mut metrics = vec![
        machine(overview),
        single("larder_report_timestamp_seconds", "When this report was made.", overview.at as f64),
        faults(overview),
        wrong_bytes(overview),
        findings(overview),
        strays("larder_stray_files", "Files in the stores that no artifact has.", overview, |_| 1),
        strays("larder_stray_bytes", "Bytes of the files in the stores that no artifact has.", overview, |one| {
            one.bytes
        }),
        single("larder_unread_bytes", "Bytes here that were never read, or were written since.", {
            overview.totals.unread_bytes as f64
        }),
    ];
    let oldest = "When the file was read that was not read for longest, of those that were ever read.";
    let oldest_read = overview.totals.oldest_read;
    metrics.extend(oldest_read.map(|at| single("larder_oldest_read_timestamp_seconds", oldest, at as f64)));
    let artifacts: [(&str, &str, OfArtifact); 7] = [
        ("larder_artifact_in_order", "1 if nothing is missing or wrong as far as is known, else 0.", |one| {
            Some(f64::from(u8::from(one.is_in_order())))
        }),
        ("larder_artifact_bytes", "Bytes of the artifact that are here.", |one| Some(one.status.here_bytes as f64)),
        ("larder_artifact_wanted_bytes", "Bytes that the artifact must have, as far as known.", |one| {
            Some(one.wanted_bytes as f64)
        }),
        ("larder_artifact_files", "Files of the artifact that are here.", |one| Some(one.status.here_files as f64)),
        ("larder_artifact_wanted_files", "Files that the artifact must have, as far as known.", |one| {
            Some(one.status.files as f64)
        }),
        (
            "larder_artifact_proven_timestamp_seconds",
            "When the file of the artifact that was not read for longest was read and right; absent if any never was.",
            |one| one.status.proven_at.map(|at| at as f64),
        ),
        (
            "larder_artifact_first_use_files",
            "Files of the artifact that are trusted as first seen, because no record has a digest.",
            |one| Some(one.status.first_use as f64),
        ),
    ];
    metrics.extend(artifacts.map(|(name, help, value)| per_artifact(overview, name, help, value)));
    metrics.extend(last_runs(overview));
    metrics
}

fn machine(overview: &Overview) -> Metric {
    let labels = vec![
        ("machine", overview.machine.clone()),
        ("profile", overview.profile.clone().unwrap_or_default()),
        ("version", overview.larder.to_owned()),
    ];
    let help = "The machine as the inventory calls it, its profile, and the larder that looked.";
    Metric { name: "larder_machine_info", help, samples: BTreeMap::from([(labels, 1.0)]) }
}

fn single(name: &'static str, help: &'static str, value: f64) -> Metric {
    Metric { name, help, samples: BTreeMap::from([(Vec::new(), value)]) }
}

fn per_artifact(overview: &Overview, name: &'static str, help: &'static str, value: OfArtifact) -> Metric {
    let sample = |one: &ReportedArtifact| Some((labels_of(one), value(one)?));
    Metric { name, help, samples: overview.artifacts.iter().filter_map(sample).collect() }
}

fn labels_of(one: &ReportedArtifact) -> Vec<(&'static str, String)> {
    vec![("artifact", one.status.artifact.clone()), ("store", one.status.store.clone())]
}

/// Faults by artifact and kind; artifacts without any have no series, the total is always there.
fn faults(overview: &Overview) -> Metric {
    let mut samples = BTreeMap::new();
    for artifact in &overview.artifacts {
        for fault in &artifact.status.faults {
            let mut labels = labels_of(artifact);
            labels.push(("kind", fault.kind.name().to_owned()));
            *samples.entry(labels).or_insert(0.0) += 1.0;
        }
    }
    // An alert on a series that is not there never fires, nor does it ever resolve.
    let none = ["artifact", "store", "kind"].map(|label| (label, String::new())).to_vec();
    if samples.is_empty() {
        samples.insert(none, 0.0);
    }
    Metric { name: "larder_faults", help: "Faults by artifact and kind; 0 without names where there is none.", samples }
}

/// Where contents are wrong, in bytes, where that is known.
fn wrong_bytes(overview: &Overview) -> Metric {
    let mut samples = BTreeMap::new();
    for artifact in &overview.artifacts {
        for fault in artifact.status.faults.iter().filter(|fault| !fault.ranges.is_empty()) {
            let mut labels = labels_of(artifact);
            labels.push(("path", fault.path.clone().unwrap_or_default()));
            labels.push(("kind", fault.kind.name().to_owned()));
            let bytes: u64 = fault.ranges.iter().map(|range| range.end - range.start).sum();
            *samples.entry(labels).or_insert(0.0) += bytes as f64;
        }
    }
    let help = "Bytes of a file that are wrong or cannot be read, where they are known.";
    Metric { name: "larder_fault_bytes", help, samples }
}

fn findings(overview: &Overview) -> Metric {
    let mut samples = BTreeMap::new();
    for (state, name) in [(State::Ok, "ok"), (State::Fault, "fault"), (State::Unknown, "unknown")] {
        let number = overview.findings.iter().filter(|finding| finding.state == state).count();
        samples.insert(vec![("state", name.to_owned())], number as f64);
    }
    Metric { name: "larder_findings", help: "Packages, keys and conditions that were looked at, by state.", samples }
}

/// The last run of each depth that was not stopped.
fn last_runs(overview: &Overview) -> [Metric; 6] {
    let last = |depth| overview.runs.iter().find(|run| run.depth == depth && !run.interrupted);
    let runs: Vec<_> = [(Depth::Quick, "quick"), (Depth::Full, "full")]
        .into_iter()
        .filter_map(|(depth, name)| Some((vec![("depth", name.to_owned())], last(depth)?)))
        .collect();
    let samples = |value: fn(&crate::facts::Run) -> f64| {
        runs.iter().map(|(labels, run)| (labels.clone(), value(run))).collect::<BTreeMap<_, _>>()
    };
    [
        Metric {
            name: "larder_verify_timestamp_seconds",
            help: "When the last verification ended that was not stopped.",
            samples: samples(|run| run.at as f64),
        },
        Metric {
            name: "larder_verify_read_bytes",
            help: "Bytes that the last verification read.",
            samples: samples(|run| run.bytes_read as f64),
        },
        Metric {
            name: "larder_verify_faults",
            help: "Faults that the last verification found.",
            samples: samples(|run| run.faults as f64),
        },
        Metric {
            name: "larder_verify_unread_bytes",
            help: "Bytes that the budget of the last verification left for another time.",
            samples: samples(|run| run.unread_bytes as f64),
        },
        Metric {
            name: "larder_verify_overdue_files",
            help: "Files that the last verification left, though they were not read within the greatest age.",
            samples: samples(|run| run.overdue as f64),
        },
        Metric {
            name: "larder_verify_overdue_bytes",
            help: "Their bytes; above 0 for long, the budget is too small.",
            samples: samples(|run| run.overdue_bytes as f64),
        },
    ]
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    #[test]
    fn label_values_are_escaped() {
        assert_eq!(super::escaped("a\"b\\c\nd"), "a\\\"b\\\\c\\nd");
    }
}
