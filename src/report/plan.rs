//! The plan as a sysadmin reads it.

use std::collections::BTreeMap;

use super::table::{self, count};
use crate::artifact::Reference;
use crate::facts::Rates;
use crate::fsio::Space;
use crate::plan::{ArtifactPlan, Download, Need, Obstacle, Origin, Plan, Room, Step};
use crate::size::Bytes;

/// Whose plan it is, and when it is read.
#[derive(Debug, Clone, Copy)]
pub struct Heading<'a> {
    /// The machine.
    pub machine: &'a str,
    /// Its profile, if it has one.
    pub profile: Option<&'a str>,
    /// Seconds since 1970.
    pub now: i64,
    /// Columns of the terminal.
    pub width: u16,
    /// Also list what is in order.
    pub everything: bool,
}

/// The whole plan: a row per artifact, the sums, what cannot be done, and what to do next.
///
/// With `rates`, it also says how long it will take, where all of its places were measured.
pub fn text(plan: &Plan, heading: &Heading<'_>, rates: &Rates) -> String {
    let mut out = title(plan, heading);
    let rows: Vec<&ArtifactPlan> = plan
        .artifacts
        .iter()
        .filter(|entry| heading.everything || !entry.steps.is_empty() || !entry.obstacles.is_empty())
        .collect();
    if !rows.is_empty() {
        let mut table = table::plain(heading.width, &["artifact", "here", "to do", "", "from"]);
        for entry in &rows {
            table.add_row(row(entry, heading.now));
        }
        table::align_right(&mut table, &[1, 3]);
        out.push('\n');
        out.push_str(&table::text(&table));
    }
    let in_order = plan.artifacts.len() - rows.len();
    if in_order > 0 && !rows.is_empty() {
        out.push_str(&format!("  … and {} in order\n", count(in_order, "artifact")));
    }
    out.push('\n');
    out.push_str(&sums(plan, rates));
    out.push_str(left_names(plan));
    out.push_str(&obstacles(plan));
    out
}

/// Where larder hands images over, it tidies up behind itself: that is said, like everything that goes.
fn left_names(plan: &Plan) -> &'static str {
    let hands_over = |step: &Step| matches!(step, Step::Install { from, .. } if !from.is_empty());
    match plan.artifacts.iter().flat_map(|entry| &entry.steps).any(hands_over) {
        true => {
            "  names 127.0.0.1:…/larder-… that a killed larder left of these images at their server go too: no content\n"
        }
        false => "",
    }
}

fn title(plan: &Plan, heading: &Heading<'_>) -> String {
    let files: usize = plan.artifacts.iter().map(|entry| entry.files).sum();
    let size: Bytes = plan.artifacts.iter().filter_map(|entry| entry.size).map(Bytes).sum();
    let profile = heading.profile.map(|profile| format!(" · profile {profile}")).unwrap_or_default();
    let unknown = plan.artifacts.iter().filter(|entry| entry.size.is_none()).count();
    let more = if unknown > 0 { format!(" and {} of unknown size", count(unknown, "artifact")) } else { String::new() };
    let (artifacts, files) = (count(plan.artifacts.len(), "artifact"), count(files, "file"));
    format!("{}{profile} · {artifacts}, {files}, {size}{more}\n", heading.machine)
}

fn row(entry: &ArtifactPlan, now: i64) -> [String; 5] {
    let here = match (entry.here_files, entry.files) {
        (0, _) => "–".to_owned(),
        (here, all) if here < all => format!("{here} of {all}"),
        _ => Bytes(entry.here_bytes).to_string(),
    };
    let (to_do, bytes, from) = work(entry, now);
    [entry.artifact.clone(), here, to_do, bytes, from]
}

fn work(entry: &ArtifactPlan, now: i64) -> (String, String, String) {
    let none = || "–".to_owned();
    if let (true, Some(obstacle)) = (entry.steps.is_empty(), entry.obstacles.first()) {
        let reason = &obstacle.refusal.reason;
        let why = obstacle.path.as_ref().map_or_else(|| reason.clone(), |path| format!("{path}: {reason}"));
        return ("cannot".to_owned(), none(), why);
    }
    let moving = moving(entry);
    let known: Vec<u64> = moving.iter().filter_map(|step| step.bytes_to_move()).collect();
    let bytes = match (moving.len(), known.len()) {
        (0, _) => none(),
        (_, 0) => "?".to_owned(),
        (all, sized) if sized < all => format!("{} + ?", Bytes(known.iter().sum())),
        _ => Bytes(known.iter().sum()).to_string(),
    };
    let to_do = if let Some(defect) = first_defect(entry) {
        ("repair".to_owned(), defect)
    } else if let Some(Step::Install { from, .. }) = moving.iter().find(|step| matches!(step, Step::Install { .. })) {
        let through = "through the running Ollama server";
        let from = from.iter().find_map(|places| places.first());
        let whole = from.map(|remote| format!("{}, {through}", place(&remote.reference)));
        ("install".to_owned(), whole.unwrap_or_else(|| through.to_owned()))
    } else if !moving.is_empty() {
        ("fetch".to_owned(), places(entry))
    } else if let Some(reuse) = entry.steps.iter().find_map(reused) {
        ("copy".to_owned(), reuse)
    } else if let Some(Step::Publish { because }) = entry.steps.first() {
        ("publish".to_owned(), because.clone())
    } else {
        let proven = entry.proven_at.map_or_else(
            || "in order, not read yet".to_owned(),
            |at| format!("in order, proven {}", table::ago(at, now)),
        );
        (none(), proven)
    };
    (to_do.0, bytes, to_do.1)
}

fn moving(entry: &ArtifactPlan) -> Vec<&Step> {
    entry.steps.iter().filter(|step| matches!(step, Step::Fetch { .. } | Step::Install { .. })).collect()
}

fn first_defect(entry: &ArtifactPlan) -> Option<String> {
    let mends: Vec<(String, &str)> = entry
        .steps
        .iter()
        .filter_map(|step| match step {
            Step::Fetch { path, need: Need::Mend { defect }, .. }
            | Step::Reuse { path, need: Need::Mend { defect }, .. } => Some((path.to_string(), defect.as_str())),
            _ => None,
        })
        .collect();
    let (path, defect) = mends.first()?;
    let more = if mends.len() > 1 { format!(", and {} more", mends.len() - 1) } else { String::new() };
    Some(format!("{path}: {defect}{more}"))
}

/// Where the bytes come from: each repository or host once.
fn places(entry: &ArtifactPlan) -> String {
    let mut places: Vec<String> = Vec::new();
    for step in &entry.steps {
        let place = match step {
            Step::Fetch { from, .. } => from.first().map(|remote| place(&remote.reference)),
            Step::Reuse { .. } => Some("this machine".to_owned()),
            _ => None,
        };
        if let Some(place) = place.filter(|place| !places.contains(place)) {
            places.push(place);
        }
    }
    match places.len() {
        0..=2 => places.join(" and "),
        more => format!("{} and {} more places", places[0], more - 1),
    }
}

/// A place as people call it.
fn place(reference: &Reference) -> String {
    match reference {
        Reference::Peer { peer, .. } => format!("{peer} (peer)"),
        Reference::Bucket { bucket, .. } => format!("{bucket} (bucket)"),
        other => other.authority(),
    }
}

fn reused(step: &Step) -> Option<String> {
    let Step::Reuse { from, .. } = step else { return None };
    Some(match from {
        Origin::Here { whose, .. } => format!("same content as {whose}"),
        Origin::Arriving { whose } => format!("same content as {whose}, once it is here"),
        Origin::Drive { path } => format!("{}", path.display()),
    })
}

/// What a step moves, and from where, as people call it; `None` for what stays on this machine.
pub fn moves(step: &Step) -> Option<(String, Option<u64>)> {
    match step {
        Step::Fetch { from, bytes, .. } => {
            let first = from.first().map(|remote| scheme(&remote.reference.authority()));
            Some((first.unwrap_or_else(|| "?".to_owned()), *bytes))
        }
        Step::Install { bytes, from } => {
            let first = from.iter().find_map(|places| places.first());
            Some((first.map_or_else(|| scheme("ollama:"), |remote| scheme(&remote.reference.authority())), *bytes))
        }
        Step::Reuse { from: Origin::Drive { .. }, bytes, .. } => Some(("drives".to_owned(), Some(*bytes))),
        Step::Reuse { .. } | Step::Publish { .. } => None,
    }
}

/// Bytes to move, as far as they are known, by the place they come from.
pub fn by_place(plan: &Plan) -> BTreeMap<String, u64> {
    let mut by_place: BTreeMap<String, u64> = BTreeMap::new();
    for (place, bytes) in plan.artifacts.iter().flat_map(|entry| &entry.steps).filter_map(moves) {
        *by_place.entry(place).or_default() += bytes.unwrap_or(0);
    }
    by_place
}

/// How long so many bytes take, and how fast that is: ` · about 17 min at 118 MiB/s`.
pub fn duration(bytes: u64, seconds: Option<f64>) -> String {
    let Some(seconds) = seconds.filter(|seconds| *seconds > 0.0) else { return String::new() };
    let rate = Bytes((bytes as f64 / seconds) as u64);
    let time = match seconds {
        ..=90.0 => format!("{} s", seconds.ceil()),
        ..=5400.0 => format!("{} min", (seconds / 60.0).round()),
        _ => format!("{:.1} h", seconds / 3600.0),
    };
    format!(" · about {time} at {rate}/s")
}

fn sums(plan: &Plan, rates: &Rates) -> String {
    let by_place = by_place(plan);
    let steps = plan.artifacts.iter().flat_map(|entry| &entry.steps);
    let unknown = steps.filter_map(moves).filter(|(_, bytes)| bytes.is_none()).count();
    let mut out = String::new();
    let bytes: u64 = by_place.values().sum();
    if bytes > 0 || unknown > 0 {
        let parts: Vec<String> =
            by_place.iter().map(|(place, bytes)| format!("{} from {place}", Bytes(*bytes))).collect();
        let seconds = rates.seconds(&by_place).filter(|_| unknown == 0);
        out.push_str(&format!("  move {}: {}{}\n", Bytes(bytes), parts.join(", "), duration(bytes, seconds)));
    }
    if unknown > 0 {
        out.push_str(&format!("  of {} the length is not known\n", count(unknown, "file")));
    }
    out.push_str(&plan.download.as_ref().map(limit_line).unwrap_or_default());
    for entry in plan.artifacts.iter().filter(|entry| !entry.steps.is_empty()) {
        for path in &entry.set_aside {
            let (artifact, store) = (&entry.artifact, &entry.store);
            out.push_str(&format!(
                "  what lies in the place of {artifact}/{path} is kept in .larder/replaced of {store}\n"
            ));
        }
    }
    for room in plan.rooms.iter().filter(|room| room.needed + room.new_files > 0) {
        out.push_str(&format!("  {}\n", room_line(room)));
    }
    out
}

fn limit_line(download: &Download) -> String {
    let (limit, planned) = (Bytes(download.limit), Bytes(download.planned));
    let left_out = match download.left_out.len() {
        0 => "everything fits".to_owned(),
        n => format!("{} of {} left out", count(n, "artifact"), Bytes(download.left_out_bytes)),
    };
    format!("  download limit {limit}: {planned} of it used, {left_out}\n")
}

fn room_line(room: &Room) -> String {
    if room.free == Space::UNKNOWN {
        return format!("{} ({}): how much is free is not known", room.path.display(), room.stores.join(", "));
    }
    let after = Bytes(room.free.saturating_sub(room.needed));
    let inodes = room.free_inodes.map(|free| format!(", {free} inodes → {}", free.saturating_sub(room.new_files)));
    let (place, stores, free) = (room.path.display(), room.stores.join(", "), Bytes(room.free));
    format!("{place} ({stores}): {free} free → {after}{}", inodes.unwrap_or_default())
}

/// `hf:owner/name` and its like become the hub; hosts stay hosts.
fn scheme(authority: &str) -> String {
    match authority.split_once(':') {
        Some(("hf", _)) => "the hub".to_owned(),
        Some(("ollama", _)) => "the Ollama registry".to_owned(),
        Some(("file", _)) => "this machine's drives".to_owned(),
        Some(("peer", name)) => name.to_owned(),
        _ => authority.to_owned(),
    }
}

fn obstacles(plan: &Plan) -> String {
    let blocked: Vec<(&str, &Obstacle)> = plan
        .artifacts
        .iter()
        .flat_map(|entry| entry.obstacles.iter().map(|obstacle| (entry.artifact.as_str(), obstacle)))
        .collect();
    let mut artifacts: Vec<&str> = blocked.iter().map(|(artifact, _)| *artifact).collect();
    artifacts.dedup();
    if artifacts.is_empty() {
        return String::new();
    }
    let mut out = format!("  {} cannot be provided completely\n", count(artifacts.len(), "artifact"));
    // The row of an artifact with nothing to do says why already.
    let told_in_row = |artifact: &str| {
        plan.artifacts
            .iter()
            .any(|entry| entry.artifact == artifact && entry.steps.is_empty() && entry.obstacles.len() == 1)
    };
    // The same obstacle often stands before many files: it is told once, with a number.
    let mut told: Vec<(&str, &Obstacle, usize)> = Vec::new();
    for (artifact, obstacle) in blocked {
        match told.iter_mut().find(|(a, o, _)| *a == artifact && o.refusal == obstacle.refusal) {
            Some((_, _, times)) => *times += 1,
            None => told.push((artifact, obstacle, 1)),
        }
    }
    for (artifact, obstacle, times) in told.iter().filter(|(artifact, ..)| !told_in_row(artifact)) {
        let place = match (&obstacle.path, times) {
            (Some(path), 1) => format!("{artifact}/{path}"),
            (Some(path), more) => format!("{artifact}/{path} and {} more", more - 1),
            (None, _) => (*artifact).to_owned(),
        };
        out.push_str(&format!("  cannot: {place}: {}\n", obstacle.refusal.reason));
    }
    let mut hints: Vec<&String> = told.iter().filter_map(|(_, obstacle, _)| obstacle.refusal.hint.as_ref()).collect();
    hints.sort();
    hints.dedup();
    hints.iter().for_each(|hint| out.push_str(&format!("hint: {hint}\n")));
    out
}

/// What to do next; `command` carries the plan out, where that can be typed on this machine.
pub fn ending(plan: &Plan, command: Option<&str>) -> String {
    if plan.is_settled() {
        "Everything is in order: there is nothing to do\n".to_owned()
    } else if plan.has_steps() {
        let how = command.map(|command| format!(". Carry it out with: {command}")).unwrap_or_default();
        format!("Nothing has been changed{how}\n")
    } else {
        "There is nothing that larder can do about it\n".to_owned()
    }
}
