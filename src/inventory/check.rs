//! What must hold within an inventory.

use std::collections::BTreeMap;
use std::path::Path;

use url::Url;

use super::{Inventory, Layout, Profile, Selector, parse_rate};
use crate::manifest::{InputError, Outline, did_you_mean};

/// A mistake and its advice, told with the keys that lead to it.
type Report<'a> = dyn FnMut(&[&str], String, &str) + 'a;

/// Everything that is wrong with `inventory`, whose text `outline` is of.
pub(super) fn check(inventory: &Inventory, outline: &Outline) -> Vec<InputError> {
    let mut errors = Vec::new();
    let mut wrong = |keys: &[&str], message: String, hint: &str| {
        errors.push(InputError::new(outline.place(keys), message).hint(hint));
    };
    check_stores(inventory, &mut wrong);
    check_machines(inventory, &mut wrong);
    check_profiles(inventory, &mut wrong);
    check_sources(inventory, &mut wrong);
    check_serve(inventory, &mut wrong);
    check_trust(inventory, &mut wrong);
    check_notify(inventory, &mut wrong);
    errors
}

fn check_serve(inventory: &Inventory, wrong: &mut Report<'_>) {
    let serve = &inventory.serve;
    if serve.certificate.is_some() != serve.key.is_some() {
        let (there, lacking) = if serve.key.is_some() { ("key", "certificate") } else { ("certificate", "key") };
        let message = format!("`{there}` stands without `{lacking}`");
        wrong(
            &["serve", there],
            message,
            "name both, or leave out both and set tls = true for a certificate of larder's own",
        );
    }
    for (key, path) in [("token-file", &serve.token_file), ("certificate", &serve.certificate), ("key", &serve.key)] {
        path.iter().for_each(|path| check_path(&["serve", key], path, wrong));
    }
    for (key, rate) in [("max-rate", &serve.max_rate), ("max-rate-per-client", &serve.max_rate_per_client)] {
        if let Some(Err(message)) = rate.as_deref().map(parse_rate) {
            wrong(&["serve", key], format!("`{key}`: {message}"), "write for example \"80 MB/s\"");
        }
    }
}

fn check_stores(inventory: &Inventory, wrong: &mut Report<'_>) {
    if inventory.stores.is_empty() {
        wrong(
            &["stores"],
            "[stores] is empty".into(),
            "declare at least one, for example huggingface = { layout = \"hf-cache\", path = \"~/.cache/huggingface/hub\" }",
        );
    }
    for (name, store) in &inventory.stores {
        let keys = |key| ["stores", name.as_str(), key];
        if store.api.is_some() && store.layout != Layout::Ollama {
            let message = format!("store `{name}`: only a store with layout \"ollama\" can have an api");
            wrong(&keys("api"), message, "remove `api`, or change the layout");
        }
        check_path(&keys("path"), &store.path, wrong);
        store.mounted.iter().for_each(|path| check_path(&keys("mounted"), path, wrong));
        check_address(&keys("api"), store.api.as_ref(), wrong);
    }
}

fn check_machines(inventory: &Inventory, wrong: &mut Report<'_>) {
    let machines = inventory.machines.keys().map(String::as_str);
    if let Some(machine) = inventory.machine.as_ref().filter(|name| !inventory.machines.contains_key(*name)) {
        let hint = did_you_mean(machine, machines).unwrap_or_else(|| format!("add a table [machines.{machine}]"));
        wrong(&["machine"], format!("this is the machine `{machine}`, which [machines] does not have"), &hint);
    }
    for (machine, config) in &inventory.machines {
        for (store, path) in &config.stores {
            let keys = ["machines", machine.as_str(), "stores", store.as_str()];
            if !inventory.stores.contains_key(store) {
                let message = format!("machine `{machine}` moves the store `{store}`, which [stores] does not have");
                wrong(&keys, message, &names(store, &inventory.stores, "add it to [stores]"));
            }
            check_path(&keys, path, wrong);
        }
    }
}

fn check_profiles(inventory: &Inventory, wrong: &mut Report<'_>) {
    let of_machines = inventory.machines.iter().filter_map(|(machine, config)| {
        let keys = vec!["machines", machine.as_str(), "profile"];
        Some((keys, format!("machine `{machine}`"), config.profile.as_ref()?))
    });
    let own = inventory.profile.iter().map(|profile| (vec!["profile"], "the inventory".to_owned(), profile));
    for (keys, who, profile) in of_machines.chain(own) {
        if !inventory.profiles.contains_key(profile) {
            let message = format!("{who} wants the profile `{profile}`, which [profiles] does not have");
            wrong(&keys, message, &names(profile, &inventory.profiles, "add a table for it"));
        }
    }
    for (name, Profile { artifacts, except, .. }) in &inventory.profiles {
        for (key, patterns) in [("artifacts", artifacts), ("except", except)] {
            check_selections(&["profiles", name, key], patterns, wrong);
        }
    }
    check_selections(&["policy", "deny"], &inventory.policy.deny, wrong);
}

fn check_sources(inventory: &Inventory, wrong: &mut Report<'_>) {
    let sources = &inventory.sources;
    if let Err(message) = sources.max_rate() {
        wrong(&["sources", "max-rate"], format!("[sources] `max-rate`: {message}"), "write a size per second");
    }
    if let Err(message) = sources.too_slow() {
        let hint = "write a size per second, or never";
        wrong(&["sources", "too-slow"], format!("[sources] `too-slow`: {message}"), hint);
    }
    let limited = inventory.machines.iter().filter(|(_, config)| config.max_rate.is_some());
    for machine in limited.map(|(machine, _)| machine) {
        if let Err(message) = inventory.sources_of(machine).max_rate() {
            let message = format!("machine `{machine}`: `max-rate`: {message}");
            wrong(&["machines", machine, "max-rate"], message, "write a size per second");
        }
    }
    if let Err((who, message)) = sources.max_rates() {
        let keys = ["sources", "max-rates", who.as_str()];
        wrong(&keys, format!("[sources] `max-rates`: `{who}`: {message}"), "write a size per second");
    }
    let numbers = [
        ("parallel", sources.parallel),
        ("connections", sources.connections),
        ("first-connections", sources.first_connections),
    ];
    for (key, number) in numbers {
        if number == 0 {
            wrong(&["sources", key], format!("`{key}` is 0: nothing could be fetched"), "write at least 1");
        }
    }
    for (key, span) in [("connect-timeout", sources.connect_timeout), ("stall-timeout", sources.stall_timeout)] {
        if span.0.is_zero() {
            wrong(&["sources", key], format!("`{key}` is 0: no server answers as fast"), "write at least \"1 s\"");
        }
    }
    check_peers(inventory, wrong);
    check_buckets(inventory, wrong);
    check_address(&["sources", "hub"], sources.hub.as_ref(), wrong);
    check_address(&["sources", "ollama"], sources.ollama.as_ref(), wrong);
}

fn check_peers(inventory: &Inventory, wrong: &mut Report<'_>) {
    let peers = &inventory.sources.peers;
    for (index, peer) in peers.iter().enumerate() {
        let number = index.to_string();
        let keys = |key| ["sources", "peers", number.as_str(), key];
        if peers[..index].iter().any(|other| other.name == peer.name) {
            wrong(&keys("name"), format!("two peers are called `{}`", peer.name), "give each its own name");
        }
        if peer.certificate.is_some() && peer.url.scheme() != "https" {
            let message = format!("peer `{}` has a certificate, but its address is not https", peer.name);
            wrong(&keys("certificate"), message, "begin the url with https://, and serve there with --tls");
        }
        check_address(&keys("url"), Some(&peer.url), wrong);
        peer.token_file.iter().for_each(|path| check_path(&keys("token-file"), path, wrong));
    }
}

fn check_trust(inventory: &Inventory, wrong: &mut Report<'_>) {
    if inventory.trust.require_signature && inventory.trust.keys.is_empty() {
        let message = "`require-signature` stands without `keys`: nobody could sign anything".to_owned();
        wrong(&["trust", "require-signature"], message, "add keys = [\"ssh-ed25519 AAAA… anna@lab\"]");
    }
}

fn check_buckets(inventory: &Inventory, wrong: &mut Report<'_>) {
    let buckets = &inventory.sources.buckets;
    for (index, bucket) in buckets.iter().enumerate() {
        let number = index.to_string();
        let keys = |key| ["sources", "buckets", number.as_str(), key];
        if buckets[..index].iter().any(|other| other.name == bucket.name) {
            wrong(&keys("name"), format!("two buckets are called `{}`", bucket.name), "give each its own name");
        }
        if bucket.name.is_empty() || bucket.name.contains(|c: char| c.is_whitespace() || c.is_control() || c == '/') {
            let message = format!("{:?} is no name for a bucket", bucket.name);
            wrong(&keys("name"), message, "write one word without /");
        }
        check_address(&keys("endpoint"), bucket.endpoint.as_ref(), wrong);
        if bucket.endpoint.as_ref().is_some_and(|endpoint| !bucket.may_ask(endpoint)) {
            let message = format!("bucket `{}` would be asked without encryption", bucket.name);
            wrong(&keys("endpoint"), message, "begin the endpoint with https://, or say allow-http = true");
        }
    }
}

fn check_notify(inventory: &Inventory, wrong: &mut Report<'_>) {
    let Some(notify) = &inventory.notify else { return };
    if notify.command.first().is_none_or(|program| program.trim().is_empty()) {
        let hint = "write the program and its arguments, for example [\"/usr/local/bin/alarm\", \"larder\"]";
        wrong(&["notify", "command"], "[notify] `command` names no program".into(), hint);
    }
    if !(1..=3600).contains(&notify.timeout_seconds) {
        let message = format!("[notify] `timeout-seconds` is {}", notify.timeout_seconds);
        wrong(&["notify", "timeout-seconds"], message, "write a number from 1 to 3600");
    }
}

/// A path that means the same wherever larder is started.
fn check_path(keys: &[&str], path: &Path, wrong: &mut Report<'_>) {
    if !path.is_absolute() && !path.starts_with("~") {
        let key = keys.last().unwrap_or(&"path");
        let message =
            format!("`{key}`: {:?} depends on the folder that larder is started in", path.display().to_string());
        wrong(keys, message, "begin the path with / or ~/");
    }
}

/// `localhost:8014` is an address with the scheme `localhost`, and not what was meant.
fn check_address(keys: &[&str], url: Option<&Url>, wrong: &mut Report<'_>) {
    if let Some(url) = url.filter(|url| !matches!(url.scheme(), "http" | "https")) {
        let key = keys.last().unwrap_or(&"address");
        let message = format!("`{key}`: {:?} is not an address of a server", url.as_str());
        wrong(keys, message, "begin the address with http:// or https://");
    }
}

fn check_selections(keys: &[&str], patterns: &[String], wrong: &mut Report<'_>) {
    for (index, pattern) in patterns.iter().enumerate() {
        if let Err(error) = Selector::new([pattern.as_str()]) {
            let index = index.to_string();
            let keys = [keys, &[index.as_str()]].concat();
            wrong(
                &keys,
                format!("`{}`: {error}", keys[keys.len() - 2]),
                "use names with *, tag:T, store:S or section:S",
            );
        }
    }
}

fn names<T>(unknown: &str, known: &BTreeMap<String, T>, otherwise: &str) -> String {
    did_you_mean(unknown, known.keys().map(String::as_str)).unwrap_or_else(|| otherwise.to_owned())
}
