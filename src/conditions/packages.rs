//! Python packages, read from the `*.dist-info` folders that installers leave.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use globset::{Glob, GlobSet, GlobSetBuilder};

use crate::conditions::paths::{expand_home, expand_under, is_absence};
use crate::conditions::{Finding, Surroundings, reason};
use crate::manifest::{Condition, Package};

/// The packages of one environment by normalized name, each with every version that is installed.
pub type Installed = BTreeMap<String, Vec<String>>;

/// What every environment has installed, or why that is not known.
pub fn installed(around: Surroundings<'_>) -> Vec<(PathBuf, Result<Installed, String>)> {
    let versions = |found: Vec<Distribution>| found.into_iter().map(|one| one.version).collect();
    let named = |found: BTreeMap<_, _>| found.into_iter().map(|(name, found)| (name, versions(found))).collect();
    read(around).into_iter().map(|environment| (environment.root, environment.installed.map(named))).collect()
}

/// What one environment has installed, or why that is not known.
pub(super) struct Environment {
    root: PathBuf,
    installed: Result<BTreeMap<String, Vec<Distribution>>, String>,
}

/// One installed distribution.
struct Distribution {
    name: String,
    version: String,
    folder: PathBuf,
}

/// Reads every environment.
pub(super) fn read(around: Surroundings<'_>) -> Vec<Environment> {
    let roots = around.environments.iter().map(|root| expand_home(root, around.home));
    roots.map(|root| Environment { installed: read_environment(&root), root }).collect()
}

fn read_environment(root: &Path) -> Result<BTreeMap<String, Vec<Distribution>>, String> {
    let unreadable = |path: &Path, error: &io::Error| format!("{} may not be read: {}", path.display(), reason(error));
    let mut folders = Vec::new();
    for pattern in ["lib*/python*/site-packages", "lib*/python*/dist-packages"] {
        let found = expand_under(root, Path::new(pattern)).map_err(|stop| unreadable(&stop.path, &stop.error))?;
        // lib64 is often a link to lib.
        folders.extend(found.into_iter().filter_map(|folder| fs_err::canonicalize(folder).ok()));
    }
    folders.sort();
    folders.dedup();
    if folders.is_empty() {
        return Err(format!("{} is not a Python environment: it has no lib/python*/site-packages", root.display()));
    }
    let mut installed: BTreeMap<String, Vec<Distribution>> = BTreeMap::new();
    for folder in folders {
        let found = read_site_packages(&folder).map_err(|error| unreadable(&folder, &error))?;
        for distribution in found {
            installed.entry(normalized(&distribution.name)).or_default().push(distribution);
        }
    }
    Ok(installed)
}

fn read_site_packages(folder: &Path) -> io::Result<Vec<Distribution>> {
    let mut found = Vec::new();
    for entry in fs_err::read_dir(folder)? {
        let path = entry?.path();
        // pip renames what it is about to remove to ~name; such leftovers are not installed.
        let stem = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(".dist-info"));
        if let Some(stem) = stem.filter(|stem| !stem.starts_with('~')) {
            found.extend(read_distribution(&path, stem));
        }
    }
    found.sort_by(|a, b| a.folder.cmp(&b.folder));
    Ok(found)
}

/// Name and version as METADATA says them, or else as the folder is called.
fn read_distribution(folder: &Path, stem: &str) -> Option<Distribution> {
    let (name, version) = stem.rsplit_once('-')?;
    let metadata = fs_err::read(folder.join("METADATA")).unwrap_or_default();
    let metadata = String::from_utf8_lossy(&metadata);
    let headers: Vec<&str> = metadata.lines().take_while(|line| !line.is_empty()).collect();
    let header = |key: &str| {
        let mut values = headers.iter().filter_map(|line| line.strip_prefix(key));
        values.next().map(|value| value.trim().to_owned())
    };
    Some(Distribution {
        name: header("Name:").unwrap_or_else(|| name.to_owned()),
        version: header("Version:").unwrap_or_else(|| version.to_owned()),
        folder: folder.to_owned(),
    })
}

/// The form in which Python compares names: `De_Core.news` and `de-core-news` are one package.
fn normalized(name: &str) -> String {
    let words: Vec<&str> = name.split(['-', '_', '.']).filter(|word| !word.is_empty()).collect();
    words.join("-").to_lowercase()
}

/// One finding for each environment; one that it cannot be known where there is none.
pub(super) fn look(package: &Package, environments: &[Environment]) -> Vec<Finding> {
    let why = package.purpose.as_deref().unwrap_or("the models were tried with this version");
    let subject = format!("package {}", package.name);
    if environments.is_empty() {
        return vec![no_environment(subject, why)];
    }
    environments.iter().map(|environment| look_in(package, environment, why)).collect()
}

fn no_environment(subject: String, why: &str) -> Finding {
    let fix = "name the platform's environments under [python] in the inventory";
    Finding::unknown(subject, "the inventory names no Python environment", why, fix)
}

fn look_in(package: &Package, environment: &Environment, why: &str) -> Finding {
    let subject = format!("package {} in {}", package.name, environment.root.display());
    let installed = match &environment.installed {
        Ok(installed) => installed,
        Err(what) => return Finding::unknown(subject, what, why, "make the environment, or correct its path"),
    };
    let fix = install_command(package, &environment.root);
    let found = installed.get(&normalized(&package.name)).map_or(&[][..], Vec::as_slice);
    let wanted = package.version.as_deref();
    match found {
        [] => Finding::fault(subject, "it is not installed", why, fix),
        [one] if wanted.is_some_and(|wanted| wanted != one.version) => {
            let what = format!("version {} is installed, {} is wanted", one.version, wanted.unwrap_or_default());
            Finding::fault(subject, what, why, fix)
        }
        [one] => match &package.revision {
            Some(revision) => look_at_revision(one, revision, subject, (why, &fix)),
            None => Finding::ok(subject, format!("version {}", one.version), why),
        },
        several => {
            let versions: Vec<&str> = several.iter().map(|one| one.version.as_str()).collect();
            let what = format!("it is installed {} times: {}", versions.len(), versions.join(", "));
            Finding::fault(subject, what, why, format!("uninstall it until it is gone; then {fix}"))
        }
    }
}

fn install_command(package: &Package, root: &Path) -> String {
    let pip = root.join("bin/pip");
    let what = match (&package.version, &package.revision) {
        (Some(version), _) => format!("{}=={version}", package.name),
        (None, Some(revision)) => format!("--no-deps -e CHECKOUT (its checkout at {revision})"),
        (None, None) => package.name.clone(),
    };
    let index = package.index.as_ref().map_or_else(String::new, |index| format!(" --pre --index-url {index}"));
    let wheels = package.artifact.as_ref().map_or_else(String::new, |artifact| {
        format!(" --no-index --find-links FOLDER (the folder of the artifact {artifact})")
    });
    format!("{} install {what}{index}{wheels}", pip.display())
}

fn look_at_revision(one: &Distribution, revision: &str, subject: String, (why, fix): (&str, &str)) -> Finding {
    let version = &one.version;
    match installed_revision(&one.folder) {
        Ok(found) if found == revision => Finding::ok(subject, format!("version {version} at {revision}"), why),
        Ok(found) => {
            let what = format!("version {version} is installed from the commit {found}, {revision} is wanted");
            Finding::fault(subject, what, why, fix)
        }
        Err(what) => Finding::unknown(subject, format!("version {version}; {what}"), why, fix),
    }
}

/// The commit that a package was installed from, by the record that pip leaves for what is no release.
fn installed_revision(folder: &Path) -> Result<String, String> {
    let record = folder.join("direct_url.json");
    let text = fs_err::read(&record).map_err(|error| match is_absence(&error) {
        true => "nothing records which commit it was installed from".to_owned(),
        false => format!("{} cannot be read: {}", record.display(), reason(&error)),
    })?;
    let record: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
    if let Some(commit) = record["vcs_info"]["commit_id"].as_str() {
        return Ok(commit.to_owned());
    }
    let checkout = record["url"].as_str().and_then(|url| url::Url::parse(url).ok()?.to_file_path().ok());
    let checkout = checkout.ok_or("nothing records which commit it was installed from")?;
    let mut git = Command::new("git");
    let asked = git.arg("-C").arg(&checkout).args(["rev-parse", "HEAD"]).env_remove("GIT_DIR").output();
    match asked {
        Ok(output) if output.status.success() => Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned()),
        _ => Err(format!("git does not say at which commit {} is", checkout.display())),
    }
}

/// Whether exactly `only` is installed of the packages that match; one finding for each environment.
pub(super) fn look_for_others(
    condition: &Condition,
    (globs, only): (&[String], &[String]),
    environments: &[Environment],
) -> Vec<Finding> {
    if environments.is_empty() {
        return vec![no_environment(condition.name.clone(), &condition.why)];
    }
    let globs = match glob_set(globs) {
        Ok(globs) => globs,
        Err(what) => return vec![Finding::unknown(&condition.name, what, &condition.why, "correct the manifest")],
    };
    let wanted: Vec<String> = only.iter().map(|name| normalized(name)).collect();
    environments.iter().map(|environment| compare(condition, &globs, &wanted, environment)).collect()
}

/// Globs over normalized names, in which `_` and `.` are `-`.
fn glob_set(globs: &[String]) -> Result<GlobSet, String> {
    let mut set = GlobSetBuilder::new();
    for glob in globs {
        let built = Glob::new(&glob.replace(['_', '.'], "-").to_lowercase());
        set.add(built.map_err(|error| format!("{glob:?} is not a glob: {}", error.kind()))?);
    }
    set.build().map_err(|error| error.to_string())
}

fn compare(condition: &Condition, globs: &GlobSet, wanted: &[String], environment: &Environment) -> Finding {
    let subject = format!("{} in {}", condition.name, environment.root.display());
    let installed = match &environment.installed {
        Ok(installed) => installed,
        Err(what) => {
            return Finding::unknown(subject, what, &condition.why, "make the environment, or correct its path");
        }
    };
    let missing: Vec<&str> = wanted.iter().filter(|name| !installed.contains_key(*name)).map(String::as_str).collect();
    let is_extra = |name: &&String| globs.is_match(name) && !wanted.contains(name);
    let extra: Vec<&str> = installed.keys().filter(is_extra).map(String::as_str).collect();
    let say = |what: &str, names: &[&str]| format!("{what}: {}", names.join(", "));
    match (missing.as_slice(), extra.as_slice()) {
        ([], []) => {
            Finding::ok(subject, say("exactly", &wanted.iter().map(String::as_str).collect::<Vec<_>>()), &condition.why)
        }
        (missing, []) => Finding::fault(subject, say("missing", missing), &condition.why, &condition.fix),
        ([], extra) => Finding::fault(subject, say("too many", extra), &condition.why, &condition.fix),
        (missing, extra) => {
            let what = format!("{}; {}", say("missing", missing), say("too many", extra));
            Finding::fault(subject, what, &condition.why, &condition.fix)
        }
    }
}
