//! Folders as diffusers and transformers write them: is every component there, with weights, settings and tokenizer?

use std::collections::BTreeSet;

use serde_json::Value;

use crate::smoke::Check;
use crate::verify::Headers;

const BASIS: &str = "model_index.json, and what diffusers and transformers read of each kind of component";
/// Settings are small; longer ones are not read.
const MAX_JSON: u64 = 64 << 20;

/// Checks of `model_index.json`, and of all settings.
pub(super) fn checks(headers: &Headers<'_>) -> Vec<Check> {
    let mut checks: Vec<Check> = json_files(headers).into_iter().collect();
    if let Some(index) = read_json(headers, "model_index.json") {
        checks.push(components(headers, &index));
    }
    checks
}

/// The JSON in a file of the artifact; `None` where it is not here or not JSON.
pub(super) fn read_json(headers: &Headers<'_>, path: &str) -> Option<Value> {
    let found = headers.at(path)?.found?;
    if found.size > MAX_JSON {
        return None;
    }
    serde_json::from_slice(&fs_err::read(&found.path).ok()?).ok()
}

/// Whether every file that is called JSON is.
fn json_files(headers: &Headers<'_>) -> Option<Check> {
    let named = headers.iter().filter(|entry| entry.file.path.file_name().ends_with(".json") && entry.found.is_some());
    let paths: Vec<&str> = named.map(|entry| entry.file.path.as_str()).collect();
    if paths.is_empty() {
        return None;
    }
    let wrong: Vec<String> = paths
        .iter()
        .filter(|path| read_json(headers, path).is_none())
        .map(|path| format!("not JSON: {path}"))
        .collect();
    let measured = format!("{} of {} can be read", paths.len() - wrong.len(), paths.len());
    Some(Check::of("settings", measured, ["all", "their names"], wrong))
}

fn components(headers: &Headers<'_>, index: &Value) -> Check {
    let here: BTreeSet<&str> =
        headers.iter().filter(|entry| entry.found.is_some()).map(|entry| entry.file.path.as_str()).collect();
    let entries = index.as_object().into_iter().flatten().filter(|(name, _)| !name.starts_with('_'));
    // A component that a pipeline can do without is written as a pair of nulls.
    let wanted = entries.filter_map(|(name, class)| Some((name.as_str(), class.as_array()?.get(1)?.as_str()?)));
    let (mut count, mut wrong) = (0, Vec::new());
    for (name, class) in wanted {
        count += 1;
        wrong.extend(lacking(name, class, &here));
    }
    Check::of("folder", format!("{count} components"), ["each complete", BASIS], wrong)
}

/// What the folder of one component lacks.
fn lacking(name: &str, class: &str, here: &BTreeSet<&str>) -> Vec<String> {
    let has = |file: &str| here.contains(format!("{name}/{file}").as_str());
    let missing = |what: &str| vec![format!("{name}/ ({class}) has no {what}")];
    if class.contains("Scheduler") {
        return if has("scheduler_config.json") { Vec::new() } else { missing("scheduler_config.json") };
    }
    if class.contains("Tokenizer") {
        let any = has("tokenizer.json")
            || has("spiece.model")
            || has("tokenizer.model")
            || has("vocab.json") && has("merges.txt");
        return if any { Vec::new() } else { missing("tokenizer.json, spiece.model, or vocab.json with merges.txt") };
    }
    if ["Processor", "Extractor"].iter().any(|kind| class.contains(kind)) {
        return if has("preprocessor_config.json") { Vec::new() } else { missing("preprocessor_config.json") };
    }
    let mut wrong = if has("config.json") { Vec::new() } else { missing("config.json") };
    let is_weights = |path: &&str| {
        path.strip_prefix(name).and_then(|rest| rest.strip_prefix('/')).is_some_and(|file| {
            !file.contains('/') && [".safetensors", ".bin", ".index.json"].iter().any(|ending| file.ends_with(ending))
        })
    };
    if !here.iter().any(is_weights) {
        wrong.extend(missing("weights"));
    }
    wrong
}
